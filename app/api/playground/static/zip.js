/** Packs files into a ZIP archive without compressing them: pictures are compressed already. */

const UTF8_NAMES = 0x0800;
const VERSION = 20; // 2.0
const NO_DATE = 0x0021; // 1 January 1980, the first date that the format knows

const LOCAL_HEADER = 0x04034b50;
const CENTRAL_HEADER = 0x02014b50;
const END = 0x06054b50;

/** The checksums of single bytes (CRC-32 of ISO 3309). */
const CHECKSUMS = Uint32Array.from({ length: 256 }, (_, byte) => {
  let sum = byte;
  for (let bit = 0; bit < 8; bit += 1) sum = sum & 1 ? (sum >>> 1) ^ 0xedb88320 : sum >>> 1;
  return sum;
});

/**
 * Pack files. A name that comes again gets a number.
 *
 * @param {{name: string, blob: Blob}[]} files Fewer than 65,536, of less than 4 GiB together.
 * @returns {Promise<Blob>}
 */
export async function zip(files) {
  /** @type {Set<string>} */
  const taken = new Set();
  const contents = [];
  const directory = [];
  let [offset, directorySize] = [0, 0];
  for (const { name, blob } of files) {
    const encoded = new TextEncoder().encode(unused(name, taken));
    const sum = checksum(new Uint8Array(await blob.arrayBuffer()));
    const lengths = [blob.size, blob.size, encoded.length, 0]; // compressed and not, name, extra field
    const facts = packed("2222244422", VERSION, UTF8_NAMES, 0, 0, NO_DATE, sum, ...lengths);
    contents.push(packed("4", LOCAL_HEADER), facts, encoded, blob);
    directory.push(packed("42", CENTRAL_HEADER, VERSION), facts, packed("22244", 0, 0, 0, 0, offset), encoded);
    offset += 30 + encoded.length + blob.size;
    directorySize += 46 + encoded.length;
  }
  const end = packed("42222442", END, 0, 0, files.length, files.length, directorySize, offset, 0);
  return new Blob([...contents, ...directory, end], { type: "application/zip" });
}

/**
 * Return a name that no file has yet, also where upper and lower case are the same: `a (2).png` after `a.png`.
 *
 * @param {string} name
 * @param {Set<string>} taken
 */
function unused(name, taken) {
  const [, stem, extension] = /^(.+?)(\.[^.]*)?$/s.exec(name) ?? ["", name, ""];
  let free = name;
  for (let number = 2; taken.has(free.toLowerCase()); number += 1) free = `${stem} (${number})${extension ?? ""}`;
  taken.add(free.toLowerCase());
  return free;
}

/** @param {Uint8Array} bytes */
function checksum(bytes) {
  let sum = ~0;
  for (const byte of bytes) sum = CHECKSUMS[(sum ^ byte) & 0xff] ^ (sum >>> 8);
  return ~sum >>> 0;
}

/**
 * Write numbers in little-endian order.
 *
 * @param {string} sizes The bytes of each number, 2 or 4.
 * @param {number[]} numbers
 */
function packed(sizes, ...numbers) {
  const bytes = [];
  for (const [index, number] of numbers.entries()) {
    for (let byte = 0; byte < Number(sizes[index]); byte += 1) bytes.push((number >>> (8 * byte)) & 0xff);
  }
  return Uint8Array.from(bytes);
}
