/** The start picture of image to image: checks of a file before it is sent. */

import { FACTS } from "./service.js";
import { written } from "./strings.js";

/** Bytes of the form besides the picture. */
const FORM_BYTES = 4096;

const SIGNATURES = [/^\x89PNG\r\n\x1a\n/, /^\xff\xd8\xff/, /^RIFF[^]{4}WEBP/];

/** The reason why a file cannot be used: a text's key and its values. */
export class UnfitFile extends Error {
  /** @param {string} key @param {Record<string, string>} values */
  constructor(key, values) {
    super(key);
    this.key = key;
    this.values = values;
  }
}

/**
 * Check a file before it is sent.
 *
 * @param {Blob} file @param {string} name
 * @returns {Promise<import("./service.js").Upload>}
 * @throws UnfitFile
 */
export async function lookAt(file, name) {
  const mostBytes = FACTS.max_body_bytes - FORM_BYTES;
  if (file.size > mostBytes) {
    const size = written(Math.ceil(file.size / 1000)); // rounded up, so that it is more than the limit
    throw new UnfitFile("file_too_big", { name, size, most: written(Math.floor(mostBytes / 1000)) });
  }
  let bytes;
  try {
    bytes = await file.arrayBuffer(); // a copy: the file may change, and a folder has none
  } catch {
    throw new UnfitFile("damaged", { name });
  }
  const head = String.fromCharCode(...new Uint8Array(bytes.slice(0, 12)));
  if (!SIGNATURES.some((signature) => signature.test(head))) throw new UnfitFile("not_a_picture", { name });
  const copy = new Blob([bytes], { type: file.type });
  const image = new Image();
  image.src = URL.createObjectURL(copy);
  try {
    await image.decode();
  } catch {
    throw new UnfitFile("damaged", { name });
  } finally {
    URL.revokeObjectURL(image.src);
  }
  const { naturalWidth: width, naturalHeight: height } = image;
  if (width * height > FACTS.max_upload_pixels) {
    const [size, most] = [width * height, FACTS.max_upload_pixels].map(written);
    throw new UnfitFile("too_many_pixels", { name, size, most });
  }
  return { file: copy, name, width, height };
}
