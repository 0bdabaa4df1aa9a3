/** The state in the page's address. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { fragmentOf, readFragment } from "../../../app/api/playground/static/address.js";

/** @type {import("../../../app/api/playground/static/address.js").Shared} */
const STATE = { prompt: "a", seed: 1, steps: 2, size: "512x512", number: 1, strength: 0.5, source: "draw" };

test("every state is read as it was written", () => {
  for (const prompt of ["a fox & a bee, 50% #1", "狐狸 🦊", "a=b?c/d+e", ""]) {
    assert.deepEqual(readFragment(fragmentOf({ ...STATE, prompt })), { ...STATE, prompt });
  }
  assert.deepEqual(readFragment(fragmentOf({ ...STATE, size: "" })).size, "");
});

test("a strength is written only where a picture starts from something, and what is no number is not", () => {
  assert.ok(!fragmentOf({ ...STATE, source: "text" }).includes("strength"));
  assert.ok(!fragmentOf({ ...STATE, seed: NaN }).includes("seed"));
});

test("what is missing or invalid is left out", () => {
  assert.deepEqual(readFragment(""), {});
  assert.deepEqual(readFragment("#prompt=a"), { prompt: "a" });
  const wrong = "#seed=4294967296&steps=5&number=0&size=<b>&strength=2&mode=x";
  assert.deepEqual(readFragment(wrong), {});
  assert.deepEqual(readFragment("#seed=-1&steps=1.5&number=&strength=nan&size=512"), {});
});
