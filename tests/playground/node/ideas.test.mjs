import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { examplesOf, hasStyle, stylesOf, surprise, toggleStyle } from "../../../app/api/playground/static/ideas.js";

const VOCABULARY = new URL("../../../app/weights/demo/tokenizer/vocab.json", import.meta.url);
/** What the demo model reads as one token; other words are read letter by letter. */
const KNOWN = new Set(Object.keys(JSON.parse(readFileSync(VOCABULARY, "utf8"))));
const WORDS_THAT_FIT = 30; // 77 tokens are at least as many English words and commas as this

const BOTH = [true, false];

/** Numbers as Math.random gives, but the same each time. @param {number} state */
function randomFrom(state) {
  return () => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    return state / 2 ** 31;
  };
}

/** @param {string} text @returns {string[]} */
const unknownIn = (text) => (text.match(/\w+/g) ?? []).filter((word) => !KNOWN.has(`${word}</w>`));

/** @param {boolean} isDemo @returns {string[]} */
function surprisesOf(isDemo) {
  const random = randomFrom(1);
  const last = () => 1 - 2 ** -53;
  const sources = [() => 0, last, ...Array.from({ length: 500 }, () => random)];
  return sources.map((source) => surprise(isDemo, source));
}

test("the demo model knows each word of its ideas", () => {
  const styles = stylesOf(true).map(({ text }) => text);
  assert.deepEqual([...examplesOf(true), ...styles, ...surprisesOf(true)].flatMap(unknownIn), []);
});

test("ideas are short and tidy", () => {
  for (const isDemo of BOTH) {
    for (const text of [...examplesOf(isDemo), ...surprisesOf(isDemo)]) {
      assert.doesNotMatch(text, /undefined|\s\s|\s,|,,|^\s|\s$/);
      assert.doesNotMatch(text, /\ba [aeiou]|\ban [^aeiou]/);
      assert.ok(text.split(/\s+|(?=,)/).length <= WORDS_THAT_FIT, text);
    }
  }
});

test("a surprise follows its random numbers, and is seldom the same", () => {
  for (const isDemo of BOTH) {
    assert.equal(surprise(isDemo, randomFrom(7)), surprise(isDemo, randomFrom(7)));
    assert.ok(new Set(surprisesOf(isDemo)).size > 200);
  }
});

test("the real model's surprises have a style, which the page shows as chosen", () => {
  for (const text of surprisesOf(false)) {
    assert.equal(stylesOf(false).filter((style) => hasStyle(text, style.text)).length, 1, text);
  }
});

test("a style is added at the end, and before a full stop", () => {
  assert.equal(toggleStyle("a cat", ", oil painting"), "a cat, oil painting");
  assert.equal(toggleStyle("a robe.", ", oil painting"), "a robe, oil painting.");
  assert.equal(toggleStyle("a cat, ", ", oil painting"), "a cat, oil painting, ");
  assert.equal(toggleStyle("", ", oil painting"), "oil painting");
});

test("a style is removed from anywhere", () => {
  assert.equal(toggleStyle("oil painting", ", oil painting"), "");
  assert.equal(toggleStyle("oil painting, pastel", ", oil painting"), "pastel");
  assert.equal(toggleStyle("a cat, pastel, at night.", ", pastel"), "a cat, at night.");
  assert.equal(toggleStyle("a cat ,Pastel , at night", ", pastel"), "a cat  , at night");
});

test("a style is not found within other words", () => {
  for (const prompt of ["a cat, pastel colours", "a pastel", "a cat at night", "a cat, at nighttime", "35 mm"]) {
    for (const { text } of [...stylesOf(true), ...stylesOf(false)]) assert.ok(!hasStyle(prompt, text), prompt + text);
  }
});

test("twice gives the same prompt, with any other styles", () => {
  for (const isDemo of BOTH) {
    const styles = stylesOf(isDemo).map(({ text }) => text);
    for (const prompt of ["", " ", ".", "a cat", "a cat.", "a cat, ", "A cat! ", "猫。\n", ...examplesOf(isDemo)]) {
      for (const first of styles) {
        const once = toggleStyle(prompt, first);
        assert.equal(hasStyle(once, first), !hasStyle(prompt, first));
        if (hasStyle(prompt, first)) continue;
        assert.equal(toggleStyle(once, first), prompt);
        for (const second of styles.filter((text) => !hasStyle(once, text))) {
          const both = toggleStyle(once, second);
          assert.equal(toggleStyle(both, second), once);
          assert.ok(hasStyle(both, first) && !hasStyle(toggleStyle(both, first), first));
        }
      }
    }
  }
});

test("styles have keys of their own", () => {
  const styles = [...stylesOf(true), ...stylesOf(false)];
  assert.equal(new Set(styles.map(({ key }) => key)).size, styles.length);
  assert.equal(new Set(styles.map(({ text }) => text)).size, styles.length);
});
