/** The page's address: prompt and settings in its fragment, which browsers do not send to servers. */

import { MAX_SEED } from "./service.js";
import { MOST_STEPS } from "./strength.js";

export const SOURCES = /** @type {const} */ (["text", "picture", "draw", "retouch", "camera"]);

/** @typedef {typeof SOURCES[number]} Source The start of a picture. */
/**
 * @typedef {{prompt: string, seed: number, steps: number, size: string, number: number, strength: number,
 *   source: Source}} Shared
 */

/** @param {Shared} state @returns {string} "#prompt=..." */
export function fragmentOf({ prompt, seed, steps, size, number, strength, source }) {
  const fields = { prompt, seed, steps, size, number, mode: source, ...(source !== "text" && { strength }) };
  const valid = Object.entries(fields).filter(([, value]) => !Number.isNaN(value));
  return `#${new URLSearchParams(valid.map(([name, value]) => [name, String(value)]))}`;
}

/**
 * Read an address. Missing and invalid fields are left out.
 *
 * @param {string} fragment @returns {Partial<Shared>}
 */
export function readFragment(fragment) {
  const fields = new URLSearchParams(fragment.replace(/^#/, ""));
  const whole = (/** @type {string} */ name, /** @type {number} */ least, /** @type {number} */ most) => {
    const text = fields.get(name) ?? "";
    return /^\d{1,10}$/.test(text) && Number(text) >= least && Number(text) <= most ? Number(text) : undefined;
  };
  const strength = Number(fields.get("strength"));
  const size = fields.get("size");
  /** @type {Partial<Shared>} */
  const read = {
    prompt: fields.get("prompt") ?? undefined,
    seed: whole("seed", 0, MAX_SEED),
    steps: whole("steps", 1, MOST_STEPS),
    number: whole("number", 1, 4),
    size: size !== null && /^(\d{2,4}x\d{2,4})?$/.test(size) ? size : undefined,
    strength: strength > 0 && strength <= 1 ? strength : undefined,
    source: SOURCES.find((source) => source === fields.get("mode")),
  };
  return Object.fromEntries(Object.entries(read).filter(([, value]) => value !== undefined));
}
