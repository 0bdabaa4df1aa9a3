/** Filling, as the canvas does it. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { colourOf, flood, rgbOf } from "../../../app/api/playground/static/paint.js";

/** Pixels of a drawing of lines, in which a space is white and all else black. @param {string[]} rows */
function pixelsOf(rows) {
  const levels = rows.join("").split("").map((one) => (one === " " ? 255 : 0));
  return { pixels: levels.flatMap((level) => [level, level, level, 255]), width: rows[0].length, height: rows.length };
}

/** @param {string[]} rows @param {number} x @param {number} y */
function filled(rows, x, y) {
  const { pixels, width, height } = pixelsOf(rows);
  const covered = flood(pixels, width, height, x, y);
  return rows.map((row, line) => [...row].map((one, column) => (covered[line * width + column] ? "." : one)).join(""));
}

test("a fill covers what is connected, and stops at lines and edges", () => {
  assert.deepEqual(filled([" #  ", " # #", " ## ", "    "], 0, 0), [".#  ", ".# #", ".##.", "...."]);
  assert.deepEqual(filled(["# #", " # ", "# #"], 1, 1), ["# #", " . ", "# #"]); // corners do not connect
});

test("a fill finds its way round corners and through gaps", () => {
  const maze = ["     ", "#### ", "     ", " ####", "     "];
  assert.ok(filled(maze, 0, 0).every((row) => !row.includes(" ")));
});

test("a fill outside of the canvas covers nothing", () => {
  const rows = ["  ", "  "];
  for (const [x, y] of [[-1, 0], [2, 0], [0, 5]]) assert.deepEqual(filled(rows, x, y), rows);
});

test("slightly different colours are filled as one, as the smooth edges of lines are", () => {
  const pixels = [200, 200, 200, 255, 230, 200, 200, 255, 255, 200, 200, 255];
  assert.deepEqual([...flood(pixels, 3, 1, 0, 0)], [1, 1, 0]);
});

test("colours are written and read", () => {
  assert.deepEqual(rgbOf("#d62828"), [214, 40, 40]);
  assert.equal(colourOf(rgbOf("#0a00ff")), "#0a00ff");
});
