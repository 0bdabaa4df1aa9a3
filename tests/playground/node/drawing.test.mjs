/** The canvas model: operations, undo, and the picture under the ink. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Drawing, constrained } from "../../../app/api/playground/static/drawing.js";

/** @typedef {import("../../../app/api/playground/static/drawing.js").Operation} Operation */

const INK = { size: 10, colour: "#222222", opacity: 1 };

/** @param {number} x @returns {import("../../../app/api/playground/static/drawing.js").Point} */
const at = (x) => [x, 0, 1];

/** @param {...number} xs @returns {import("../../../app/api/playground/static/drawing.js").Stroke} */
const stroke = (...xs) => ({ kind: "stroke", erases: false, points: xs.map(at), ...INK });

/** @param {Drawing} drawing @param {...number} xs */
function draw(drawing, ...xs) {
  drawing.begin(stroke(xs[0]));
  for (const x of xs.slice(1)) drawing.extend(at(x));
  return drawing.end();
}

/** The first points of a drawing's strokes. @param {Drawing} drawing */
const firsts = (drawing) => drawing.operations.map((one) => (one.kind === "stroke" ? one.points[0][0] : one.kind));

/** The picture under the ink. @param {Drawing} drawing */
const pictureOf = (drawing) => drawing.picture;

/** @returns {import("../../../app/api/playground/static/drawing.js").Placed} */
const placed = (x = 0) => ({ kind: "picture", picture: "a picture", x, y: 0, width: 100, height: 50, isAlone: false });

test("a stroke is drawn from its first point to its last, and added at its end", () => {
  const drawing = new Drawing();
  drawing.begin(stroke(1));
  drawing.extend(at(2));
  assert.equal(drawing.operations.length, 0);
  assert.deepEqual(drawing.live, stroke(1, 2));
  assert.equal(drawing.isEmpty, false);
  assert.equal(drawing.end(), true);
  assert.deepEqual(drawing.operations, [stroke(1, 2)]);
  assert.equal(drawing.live, null);
});

test("a point is a stroke, and a shape without extent is nothing", () => {
  const drawing = new Drawing();
  assert.equal(draw(drawing, 1), true);
  drawing.begin({ kind: "line", filled: true, from: at(5), to: at(5), ...INK });
  assert.equal(drawing.end(), false);
  assert.equal(drawing.operations.length, 1);
});

test("a shape reaches from where it began to the last point", () => {
  const drawing = new Drawing();
  drawing.begin({ kind: "rectangle", filled: true, from: at(5), to: at(5), ...INK });
  drawing.extend(at(7));
  drawing.extend(at(9));
  drawing.end();
  assert.deepEqual(drawing.operations, [{ kind: "rectangle", filled: true, from: at(5), to: at(9), ...INK }]);
});

test("undo and redo walk through the operations, and a new one ends the redoing", () => {
  const drawing = new Drawing();
  for (const x of [1, 2, 3]) draw(drawing, x);
  assert.equal(drawing.undo(), true);
  assert.equal(drawing.undo(), true);
  assert.deepEqual(firsts(drawing), [1]);
  assert.equal(drawing.redo(), true);
  assert.deepEqual(firsts(drawing), [1, 2]);
  draw(drawing, 4);
  assert.deepEqual(firsts(drawing), [1, 2, 4]);
  assert.equal(drawing.canRedo, false);
  assert.equal(drawing.redo(), false);
  for (let number = 0; number < 3; number += 1) drawing.undo();
  assert.equal(drawing.undo(), false);
  assert.equal(drawing.isEmpty, true);
});

test("undo while a stroke is drawn drops that stroke only", () => {
  const drawing = new Drawing();
  draw(drawing, 1);
  drawing.begin(stroke(2));
  drawing.undo();
  assert.equal(drawing.live, null);
  assert.deepEqual(firsts(drawing), [1]);
});

test("clearing can be undone, and an empty drawing has nothing to clear", () => {
  const drawing = new Drawing();
  assert.equal(drawing.clear(), false);
  draw(drawing, 1);
  assert.equal(drawing.clear(), true);
  assert.equal(drawing.isEmpty, true);
  drawing.undo();
  assert.equal(drawing.isEmpty, false);
  assert.deepEqual(firsts(drawing), [1]);
});

test("a hundred operations can be undone, and older ones are handed over once, oldest first", () => {
  /** @type {Operation[]} */
  const final = [];
  const drawing = new Drawing((operation) => final.push(operation));
  for (let x = 0; x < 103; x += 1) draw(drawing, x);
  assert.deepEqual(final, [stroke(0), stroke(1), stroke(2)]);
  let undone = 0;
  while (drawing.undo()) undone += 1;
  assert.equal(undone, 100);
  assert.equal(drawing.isEmpty, false); // the final ones are still there
});

test("the picture under the ink is the last one, is moved by its middle, and goes and comes with undo", () => {
  const drawing = new Drawing();
  assert.equal(pictureOf(drawing), null);
  drawing.add(placed());
  drawing.begin({ ...placed() });
  drawing.extend([80, 60, 1]);
  assert.deepEqual([pictureOf(drawing)?.x, pictureOf(drawing)?.y], [30, 35]);
  drawing.end();
  drawing.undo();
  assert.equal(pictureOf(drawing)?.x, 0);
  drawing.clear();
  assert.equal(pictureOf(drawing), null);
  drawing.undo();
  drawing.undo();
  assert.equal(pictureOf(drawing), null);
});

test("a picture stays under the ink when it cannot be undone any more", () => {
  const drawing = new Drawing();
  drawing.add(placed(7));
  for (let x = 0; x < 150; x += 1) draw(drawing, x);
  assert.equal(pictureOf(drawing)?.x, 7);
  drawing.clear();
  assert.equal(pictureOf(drawing), null);
});

test("a constrained line keeps to eighths of a turn, and a constrained shape is a square", () => {
  const [x, y] = constrained([0, 0, 1], [100, 10, 1], true);
  assert.deepEqual([Math.round(x), Math.round(y)], [100, 0]);
  const [dx, dy] = constrained([0, 0, 1], [100, 90, 1], true);
  assert.ok(Math.abs(dx - dy) < 1e-9);
  assert.deepEqual(constrained([10, 10, 1], [0, 40, 1], false), [-20, 40, 1]);
});
