/** Reads how a picture was made from a PNG's text `parameters`, as the service and Stable Diffusion WebUI write it. */

/**
 * @typedef {object} Making
 * @property {string} prompt
 * @property {number} [steps] Those of the request, of which image to image runs a share.
 * @property {number} [seed]
 * @property {string} [size] WIDTHxHEIGHT
 * @property {number} [strength]
 */

const SIGNATURE = "\x89PNG\r\n\x1a\n";
const MOST_CHUNKS = 4096; // 32 MiB of pixels in chunks of 8 KiB, as libpng writes them
const MOST_BYTES = 2 ** 16; // of a text, and of its chunk

/** What comes before the text, by kind of chunk (PNG specification, section 11.3.3). @type {Map<string, RegExp>} */
const HEADS = new Map([
  ["tEXt", /^parameters\0/],
  ["zTXt", /^parameters\0\0/],
  ["iTXt", /^parameters\0[\0\x01]\0[^\0]*\0[^\0]*\0/],
]);
const FLAG_AT = "parameters\0".length; // in iTXt: whether the text is compressed

/** A parameter. If its value is quoted, it may contain commas. */
const PAIR = /(?:^|,)\s*([\w()/+.-][\w ()/+.-]*):\s*("(?:\\.|[^\\"])+"|[^,]*)/g;
const LEAST_PAIRS = 3; // as in WebUI

/**
 * Return how a PNG's picture was made; null if the file is no PNG, does not say it, or is damaged. Never rejects.
 *
 * @param {Blob} file
 * @returns {Promise<Making | null>}
 */
export async function readParameters(file) {
  try {
    const text = await findText(file);
    return text === null ? null : parametersOf(text);
  } catch {
    return null;
  }
}

/**
 * Return what a text `parameters` says; null if it has another form.
 *
 * @param {string} text
 * @returns {Making | null}
 */
export function parametersOf(text) {
  const whole = `\n${text.trimEnd()}`;
  const end = whole.lastIndexOf("\n");
  const pairs = new Map([...whole.slice(end + 1).matchAll(PAIR)].map(([, name, value]) => [name, value.trim()]));
  if (pairs.size < LEAST_PAIRS) return null;
  const [prompt] = whole.slice(0, end).split("\nNegative prompt:");
  /** @type {Making} */
  const making = { prompt: prompt.slice(1) };
  const [steps, seed] = [pairs.get("Steps") ?? "", pairs.get("Seed") ?? ""];
  const [size, strength] = [pairs.get("Size") ?? "", pairs.get("Denoising strength") ?? ""];
  if (/^\d{1,9}$/.test(steps)) making.steps = Number(steps);
  if (/^\d{1,15}$/.test(seed)) making.seed = Number(seed);
  if (/^\d{1,5}x\d{1,5}$/.test(size)) making.size = size;
  if (/^(0(\.\d+)?|1(\.0+)?)$/.test(strength)) making.strength = Number(strength);
  return making;
}

/**
 * Find the text in a PNG, without reading the pixels.
 *
 * @param {Blob} file
 */
async function findText(file) {
  if (latin1(await bytesOf(file.slice(0, SIGNATURE.length))) !== SIGNATURE) return null;
  let at = SIGNATURE.length;
  for (let chunks = 0; chunks < MOST_CHUNKS && at + 8 <= file.size; chunks += 1) {
    const head = await bytesOf(file.slice(at, at + 8));
    const length = new DataView(head.buffer).getUint32(0);
    const kind = latin1(head.subarray(4));
    const start = at + 8;
    at = start + length + 4; // behind the checksum
    if (kind === "IEND") return null;
    if (!HEADS.has(kind) || length > MOST_BYTES || at > file.size) continue;
    const text = await textOf(kind, file.slice(start, start + length));
    if (text !== null) return text;
  }
  return null;
}

/**
 * Return the text of a chunk; null if it has another keyword.
 *
 * @param {string} kind
 * @param {Blob} chunk
 */
async function textOf(kind, chunk) {
  const bytes = await bytesOf(chunk);
  const start = HEADS.get(kind)?.exec(latin1(bytes))?.[0].length;
  if (start === undefined) return null;
  const isCompressed = kind === "zTXt" || (kind === "iTXt" && bytes[FLAG_AT] === 1);
  const text = isCompressed ? await inflated(chunk.slice(start)) : bytes.subarray(start);
  return kind === "iTXt" ? new TextDecoder().decode(text) : latin1(text);
}

/**
 * Inflate a text, and reject if it is long: 64 KiB can inflate to 64 MiB.
 *
 * @param {Blob} deflated
 */
async function inflated(deflated) {
  const reader = deflated.stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const pieces = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return bytesOf(new Blob(pieces));
    pieces.push(value);
    size += value.length;
    if (size > MOST_BYTES) {
      await reader.cancel();
      throw new RangeError("The text is too long.");
    }
  }
}

/** @param {Blob} blob */
const bytesOf = async (blob) => new Uint8Array(await blob.arrayBuffer());

/** Decode ISO 8859-1, which TextDecoder does not know: it reads windows-1252 instead. @param {Uint8Array} bytes */
const latin1 = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
