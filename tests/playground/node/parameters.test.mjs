import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateSync } from "node:zlib";

import { parametersOf, readParameters } from "../../../app/api/playground/static/parameters.js";

const SETTINGS = "Steps: 4, Sampler: Euler a, CFG scale: 0, Seed: 5, Size: 768x512, Model: m, Denoising strength: 0.5";
const MADE = { steps: 4, seed: 5, size: "768x512", strength: 0.5 };
const FOX = { prompt: "a fox", ...MADE };
const TEXT = `a fox\n${SETTINGS}`;

/** @param {string} text */
const latin1 = (text) => Buffer.from(text, "latin1");
/** @param {string} text */
const utf8 = (text) => Buffer.from(text, "utf8");

/**
 * A chunk without its checksum, which readers of texts do not check.
 *
 * @param {string} name
 * @param {Buffer[]} parts
 */
function chunk(name, ...parts) {
  const content = Buffer.concat(parts);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(content.length);
  return Buffer.concat([length, latin1(name), content, Buffer.alloc(4)]);
}

const SIGNATURE = latin1("\x89PNG\r\n\x1a\n");
const HEADER = chunk("IHDR", Buffer.from([0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0, 0, 0]));
const PIXELS = chunk("IDAT", deflateSync(Buffer.alloc(4)));
const END = chunk("IEND");

/** @param {string} content */
const text = (content) => chunk("tEXt", latin1(`parameters\0${content}`));
/** @param {Buffer} content */
const international = (content, { flag = 0, between = "\0\0" } = {}) =>
  chunk("iTXt", utf8(`parameters\0${String.fromCharCode(flag)}\0${between}`), content);
/** @param {Buffer} content */
const compressed = (content) => chunk("zTXt", latin1("parameters\0\0"), content);

/** @param {Buffer<ArrayBuffer>[]} chunks */
const png = (...chunks) => new Blob([SIGNATURE, HEADER, ...chunks, PIXELS, END]);

/** A Blob that adds up the bytes of which it was read. */
class Counted extends Blob {
  read = 0;

  /**
   * @override
   * @param {number} start
   * @param {number} end
   */
  slice(start, end) {
    this.read += Math.max(0, Math.min(end, this.size) - start);
    return super.slice(start, end);
  }
}

test("each kind of text is read", async () => {
  assert.deepEqual(await readParameters(png(text(TEXT))), FOX);
  assert.deepEqual(await readParameters(png(compressed(deflateSync(latin1(TEXT))))), FOX);
  assert.deepEqual(await readParameters(png(international(utf8(TEXT)))), FOX);
  assert.deepEqual(await readParameters(png(international(deflateSync(utf8(TEXT)), { flag: 1 }))), FOX);
  assert.deepEqual(await readParameters(png(international(utf8(TEXT), { between: "zh\0参数\0" }))), FOX);
});

test("Latin-1 and UTF-8 are each read as what they are", async () => {
  const prompt = "é ÿ \x85 \x9f";
  assert.equal((await readParameters(png(text(`${prompt}\n${SETTINGS}`))))?.prompt, prompt);
  assert.equal((await readParameters(png(compressed(deflateSync(latin1(`${prompt}\n${SETTINGS}`))))))?.prompt, prompt);
  const fox = "狐狸 🦊 é";
  assert.equal((await readParameters(png(international(utf8(`${fox}\n${SETTINGS}`)))))?.prompt, fox);
});

test("other texts, other chunks and longer keywords are passed over", async () => {
  const others = [
    chunk("tEXt", latin1(`Comment\0another\n${SETTINGS}`)),
    chunk("tEXt", latin1(`parameters2\0another\n${SETTINGS}`)),
    chunk("tEXt", latin1("parameters")),
    chunk("iTXt", utf8("XML:com.adobe.xmp\0\0\0\0\0<x/>")),
    chunk("teXt", latin1(`parameters\0another\n${SETTINGS}`)),
  ];
  assert.deepEqual(await readParameters(png(...others, text(TEXT))), FOX);
  assert.equal(await readParameters(png(...others)), null);
});

test("a text behind the pixels is found, and the pixels are not read", async () => {
  const pixels = [1 << 20, 1 << 15, 1 << 12].map((length) => chunk("IDAT", Buffer.alloc(length)));
  const file = new Counted([SIGNATURE, HEADER, ...pixels, text(TEXT), END]);
  assert.deepEqual(await readParameters(file), FOX);
  assert.ok(file.read < 1000, `${file.read} bytes were read`);
});

test("nothing behind the picture's end is read", async () => {
  assert.equal(await readParameters(new Blob([SIGNATURE, HEADER, PIXELS, END, text(TEXT)])), null);
});

test("a file that is no PNG has no parameters", async () => {
  for (const parts of [[], ["\x89PNG"], ["Dear Sir or Madam"], [text(TEXT)], ["GIF89a\0\0", text(TEXT), END]]) {
    assert.equal(await readParameters(new Blob(parts)), null);
  }
});

test("a file torn anywhere gives its parameters or none, but no part of them", async () => {
  const whole = Buffer.from(await png(international(deflateSync(utf8(TEXT)), { flag: 1 })).arrayBuffer());
  const behindText = whole.length - PIXELS.length - END.length;
  for (let length = 0; length < whole.length; length += 1) {
    const torn = new Blob([whole.subarray(0, length)]);
    assert.deepEqual(await readParameters(torn), length < behindText ? null : FOX);
  }
});

test("no damaged byte makes it reject", async () => {
  for (const part of [text(TEXT), compressed(deflateSync(latin1(TEXT))), international(utf8(TEXT))]) {
    const whole = Buffer.from(await png(part).arrayBuffer());
    for (let at = 0; at < whole.length; at += 1) {
      for (const value of [0, 0x7f, 0xff]) {
        const damaged = Buffer.from(whole);
        damaged[at] = value;
        const made = await readParameters(new Blob([damaged]));
        assert.ok(made === null || typeof made.prompt === "string");
      }
    }
  }
});

test("a file that cannot be read any more has no parameters", async () => {
  const lost = png(text(TEXT));
  lost.slice = () => Object.assign(new Blob(), { arrayBuffer: () => Promise.reject(new Error("NotFoundError")) });
  assert.equal(await readParameters(lost), null);
});

test("a text of at most 64 KiB is read, also if it inflates to more", async () => {
  const most = 2 ** 16;
  /** @param {number} length */
  const ofLength = (length) => `${"x".repeat(length - SETTINGS.length - 1)}\n${SETTINGS}`;
  const fits = ofLength(most - "parameters\0".length);
  assert.deepEqual(await readParameters(png(text(fits))), { prompt: fits.split("\n")[0], ...MADE });
  assert.equal(await readParameters(png(text(`${fits}9`))), null);
  /** @param {number} length */
  const deflated = (length) => compressed(deflateSync(latin1(ofLength(length))));
  assert.equal((await readParameters(png(deflated(most))))?.seed, 5);
  assert.equal(await readParameters(png(deflated(most + 1))), null);
  assert.equal(await readParameters(png(deflated(50_000_000))), null);
});

test("a file of millions of chunks is not read to its end", async () => {
  const file = new Counted([SIGNATURE, Buffer.concat(Array(1_000_000).fill(chunk("IDAT")))]);
  assert.equal(await readParameters(file), null);
  assert.ok(file.read < 100_000, `${file.read} bytes were read`);
});

test("a prompt may have several lines, commas, colons and quotes, and look like parameters", () => {
  const prompts = [
    "",
    " a fox, \"red\", it's: 5 \\ ",
    "first\nsecond\n\nfourth\n",
    "\n",
    "Steps: 1, Seed: 2, Size: 64x64",
    "x\nSteps: 1, Seed: 2, Size: 64x64, Denoising strength: 1",
    "狐狸，雪 🦊",
  ];
  for (const prompt of prompts) assert.deepEqual(parametersOf(`${prompt}\n${SETTINGS}`), { prompt, ...MADE });
  assert.deepEqual(parametersOf(SETTINGS), { prompt: "", ...MADE });
});

test("a negative prompt is left out", () => {
  const making = parametersOf(`a fox\nin snow\nNegative prompt: dogs,\nNegative: cats\n${SETTINGS}\n`);
  assert.deepEqual(making, { ...FOX, prompt: "a fox\nin snow" });
  assert.deepEqual(parametersOf(`Negative prompt: dogs\n${SETTINGS}`), { ...FOX, prompt: "" });
});

test("what a quoted value contains is no parameter", () => {
  const settings = 'Steps: 3, Model: my"model, Seed: 7, Size: 8x16, Hashes: "a: 1, Seed: 6, b: \\"x\\", Size: 64x64"';
  assert.deepEqual(parametersOf(`a\n${settings}, Denoising strength: 0.5`), {
    prompt: "a",
    steps: 3,
    seed: 7,
    size: "8x16",
    strength: 0.5,
  });
});

test("a value of another form is left out", () => {
  const other = "Steps: 4.5, Sampler: x, Seed: -1, Size: 512, Denoising strength: 1.5";
  assert.deepEqual(parametersOf(`a\n${other}`), { prompt: "a" });
  const long = `Steps: ${"9".repeat(400)}, Seed: 1e3, Size: ${"9".repeat(400)}x1, Denoising strength: NaN`;
  assert.deepEqual(parametersOf(`a\n${long}`), { prompt: "a" });
  assert.deepEqual(parametersOf("a\nSteps: 1, Seed: 0, Size: 1024x1024, Denoising strength: 1.0"), {
    prompt: "a",
    steps: 1,
    seed: 0,
    size: "1024x1024",
    strength: 1,
  });
});

test("a text of another form has no parameters", () => {
  const json = '{"prompt": "a fox", "steps": 4, "seed": 5, "size": 6}';
  const others = ["", "\n", "a fox", "a fox\nin snow", json, "Steps: 4, Seed: 5"];
  for (const other of others) assert.equal(parametersOf(other), null);
});

test("the time to read a text grows with its length and no faster", () => {
  for (const piece of [",a: \"", ",a:\"\\", ", ", "a a", ",a", ": ", "\\\"", "\n", "\nNegative prompt:"]) {
    const started = performance.now();
    parametersOf(`${piece.repeat(2 ** 16 / piece.length)}x`);
    const took = performance.now() - started;
    assert.ok(took < 1000, `${JSON.stringify(piece)} took ${took} ms`);
  }
});
