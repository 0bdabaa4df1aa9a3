import assert from "node:assert/strict";
import { test } from "node:test";

import { zip } from "../../../app/api/playground/static/zip.js";

/**
 * Take an archive apart as readers do: from its end to the directory, and from there to each file.
 *
 * @param {Blob} archive
 */
async function unzipped(archive) {
  const bytes = Buffer.from(await archive.arrayBuffer());
  const end = bytes.length - 22;
  assert.equal(bytes.readUInt32LE(end), 0x06054b50);
  const [here, all] = [bytes.readUInt16LE(end + 8), bytes.readUInt16LE(end + 10)];
  const [size, start] = [bytes.readUInt32LE(end + 12), bytes.readUInt32LE(end + 16)];
  assert.equal(here, all);
  assert.equal(start + size, end);
  const files = [];
  let [at, next] = [start, 0];
  while (at < end) {
    assert.equal(bytes.readUInt32LE(at), 0x02014b50);
    const local = bytes.readUInt32LE(at + 42);
    assert.equal(local, next);
    assert.equal(bytes.readUInt32LE(local), 0x04034b50);
    assert.deepEqual(bytes.subarray(local + 4, local + 30), bytes.subarray(at + 6, at + 32)); // the facts agree
    const [flags, method] = [8, 10].map((offset) => bytes.readUInt16LE(at + offset));
    const date = bytes.readUInt32LE(at + 12);
    const [checksum, packed, length] = [16, 20, 24].map((offset) => bytes.readUInt32LE(at + offset));
    const nameLength = bytes.readUInt16LE(at + 28);
    assert.equal(packed, length);
    const content = local + 30 + nameLength;
    const name = bytes.toString("utf8", at + 46, at + 46 + nameLength);
    assert.equal(bytes.toString("utf8", local + 30, content), name);
    files.push({ name, flags, method, date, checksum, content: bytes.toString("latin1", content, content + length) });
    next = content + length;
    at += 46 + nameLength;
  }
  assert.equal(at, end);
  assert.equal(next, start);
  assert.equal(files.length, all);
  return files;
}

/** @param {string[]} names */
const named = (...names) => names.map((name) => ({ name, blob: new Blob([name]) }));
/** @param {string[]} names */
const namesIn = async (...names) => (await unzipped(await zip(named(...names)))).map(({ name }) => name);

test("an archive has each file, uncompressed and with its checksum", async () => {
  const archive = await zip([
    { name: "digits.txt", blob: new Blob(["123456789"]) },
    { name: "empty", blob: new Blob() },
    { name: "狐狸.png", blob: new Blob([Uint8Array.from({ length: 256 }, (_, byte) => byte)]) },
  ]);
  assert.equal(archive.type, "application/zip");
  const [digits, empty, fox] = await unzipped(archive);
  const constant = { flags: 0x0800, method: 0, date: 0x00210000 };
  assert.deepEqual(digits, { name: "digits.txt", ...constant, checksum: 0xcbf43926, content: "123456789" });
  assert.deepEqual(empty, { name: "empty", ...constant, checksum: 0, content: "" });
  assert.equal(fox.name, "狐狸.png");
  assert.equal(fox.checksum, 0x29058c73);
  assert.equal(fox.content, String.fromCharCode(...Array(256).keys()));
});

test("an archive of no files is valid", async () => {
  assert.deepEqual(await unzipped(await zip([])), []);
});

test("the same files make the same archive", async () => {
  const [one, other] = await Promise.all([zip(named("a", "b")), zip(named("a", "b"))]);
  assert.deepEqual(await one.arrayBuffer(), await other.arrayBuffer());
});

test("names that come again get a number before their ending", async () => {
  assert.deepEqual(await namesIn("a.png", "a.png", "b.png", "a.png"), ["a.png", "a (2).png", "b.png", "a (3).png"]);
  assert.deepEqual(await namesIn("a", "a", ".b", ".b"), ["a", "a (2)", ".b", ".b (2)"]);
  assert.deepEqual(await namesIn("c.d.e", "c.d.e"), ["c.d.e", "c.d (2).e"]);
});

test("a number never makes the name of another file", async () => {
  const names = await namesIn("a (2).png", "a.png", "a.png", "a (2).png");
  assert.deepEqual(names, ["a (2).png", "a.png", "a (3).png", "a (2) (2).png"]);
});

test("names that differ only in case are the same, as some systems have it", async () => {
  assert.deepEqual(await namesIn("a.png", "A.png"), ["a.png", "A (2).png"]);
});
