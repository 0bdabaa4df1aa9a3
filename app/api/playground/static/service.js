/** The service as the page sees it: requests, pictures, errors, readiness. */

export const MAX_SEED = 2 ** 32 - 1;

/**
 * @typedef {object} Upload A picture to send. One that changes, such as a drawing, is taken when it is sent.
 * @property {string} name
 * @property {number} width
 * @property {number} height
 * @property {Blob} [file]
 * @property {() => Promise<Blob>} [snapshot]
 * @property {boolean} [isPrivate] It is never stored.
 *
 * @typedef {object} State What the page's pictures are made from.
 * @property {string} prompt
 * @property {number} steps
 * @property {number} seed
 * @property {string} size "WIDTHxHEIGHT", or "" for the start picture's own.
 * @property {number} number
 * @property {number} strength
 * @property {Upload | null} start
 * @property {Upload | null} mask Its white parts are drawn anew.
 * @property {number} feather Pixels.
 * @property {import("./address.js").Source} source
 * @property {boolean} [isLive] It is changing at the moment.
 *
 * @typedef {{blob: Blob, url: string, seed: number, image: HTMLImageElement}} Picture
 *
 * @typedef {object} Result
 * @property {State} state
 * @property {Picture[]} pictures
 * @property {string} size "WIDTHxHEIGHT"
 * @property {number} steps That ran.
 * @property {number} tokens
 * @property {boolean} truncated
 * @property {number} latencyMs
 * @property {Record<string, number>} serverMs The time of each stage.
 * @property {number} startedAt
 */

/** Facts of the service, which it writes into the page. */
export const FACTS = JSON.parse(globalThis.document?.documentElement.dataset.facts ?? "{}");

/** The steps that image to image runs, as the service computes them. @param {number} steps @param {number} strength */
export const effectiveSteps = (steps, strength) => Math.trunc(steps * strength);

/**
 * Return the request for a state's pictures. The page sends it and the code to copy contains it, so they agree.
 *
 * @param {State} state
 */
export function requestOf({ prompt, steps, seed, size, number, strength, start, mask, feather }) {
  /** @type {Record<string, string | number>} */
  const fields = { prompt, num_inference_steps: steps, seed };
  if (start) fields.strength = strength;
  if (start && mask) fields.feather = feather;
  if (size) [fields.width, fields.height] = size.split("x").map(Number);
  const several = number > 1;
  if (several) fields.num_images = number;
  /** @type {[string, Upload][]} */
  const files = [];
  if (start) files.push(["image", start]);
  if (start && mask) files.push(["mask", mask]);
  return { path: ["txt2img", "img2img", "inpaint"][files.length], fields, files, several };
}

/** Return the state with the pictures of this moment. @param {State} state @returns {Promise<State>} */
export async function fixed(state) {
  const take = async (/** @type {Upload | null} */ upload) => {
    if (!upload?.snapshot) return upload;
    const { snapshot, ...about } = upload;
    return { ...about, file: await snapshot() };
  };
  return { ...state, start: await take(state.start), mask: await take(state.mask) };
}

/** While a drawing or a camera changes, pictures are soon replaced: this type is the quickest to encode and decode. */
const LIVE_TYPE = "image/jpeg";

/** The longest part of a file's name that comes from the prompt. */
const MOST_NAME = 60;

/** The name of a picture's file. @param {string} prompt @param {{seed: number, blob: {type: string}}} picture */
export function fileName(prompt, { seed, blob }) {
  const words = prompt.normalize("NFC").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  let name = "";
  for (const word of words) if (name.length + word.length < MOST_NAME) name += `${word}-`;
  return `${name || "turbo-"}${seed}.${blob.type === LIVE_TYPE ? "jpg" : "png"}`;
}

/** An error response, or no response. `fields` has the reasons of invalid fields. */
export class Problem extends Error {
  /**
   * @param {{status?: number, code?: string, detail: string, fields?: Map<string, string>, retryAfterS?: number,
   *   retryable?: boolean}} about
   */
  constructor({ status = 0, code, detail, fields = new Map(), retryAfterS, retryable = false }) {
    super(detail);
    this.status = status;
    this.code = code;
    this.detail = detail;
    this.fields = fields;
    this.retryAfterS = retryAfterS;
    this.retryable = retryable;
  }
}

/** The response is a success, but not from this service. @param {unknown} error */
const foreign = (error) => new Problem({ code: "foreign", detail: String(error) });

const RETRYABLE = [429, 503, 504];

/**
 * Read an error response, any part of which a proxy may have written.
 *
 * @param {Response} response @param {string} text
 */
function problemOf(response, text) {
  const { status, statusText, headers } = response;
  const said = parsed(text);
  const isOurs = typeof said?.detail === "string";
  const detail = isOurs ? said.detail : `${status} ${statusText}`.trim();
  const fields = new Map();
  if (isOurs && Array.isArray(said.errors)) for (const fault of said.errors) fields.set(fault?.param, fault?.detail);
  if (isOurs && said.error?.param && !fields.size) fields.set(said.error.param, detail);
  const retryable = RETRYABLE.includes(status) && headers.get("X-Should-Retry") !== "false";
  const retryAfterS = Number(headers.get("Retry-After")) || undefined;
  return new Problem({ status, code: said?.code, detail, fields, retryable, retryAfterS });
}

/** @param {string} text */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * Make a state's pictures.
 *
 * @param {State} state As `fixed` returns it. @param {string} key @param {AbortSignal} signal
 * @returns {Promise<Result>}
 * @throws Problem
 */
export async function generate(state, key, signal) {
  const { path, fields, files, several } = requestOf(state);
  /** @type {Record<string, string>} */
  const headers = { Accept: several ? "application/json" : state.isLive ? LIVE_TYPE : "image/png" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let body;
  if (files.length) {
    body = new FormData();
    for (const [name, value] of Object.entries(fields)) body.append(name, String(value));
    for (const [name, upload] of files) body.append(name, /** @type {Blob} */ (upload.file), upload.name);
  } else {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(fields);
  }
  const startedAt = performance.now();
  let response, blob;
  try {
    response = await fetch(path, { method: "POST", headers, body, signal });
    blob = await response.blob();
  } catch (error) {
    throw new Problem({ code: "offline", detail: String(error), retryable: true });
  }
  const latencyMs = performance.now() - startedAt;
  if (!response.ok) throw problemOf(response, await blob.text());
  if (!response.headers.has("X-Image-Size")) throw foreign("no X-Image-Size");
  let pictures;
  try {
    const made = several ? filesOf(JSON.parse(await blob.text())) : [{ blob, seed: state.seed }];
    // Decoded before they are shown, because the stage would flash otherwise.
    pictures = await Promise.all(made.map((file) => decoded(file, state.prompt)));
  } catch (error) {
    throw foreign(error);
  }
  if (signal.aborted) release({ pictures });
  return {
    state,
    pictures,
    size: response.headers.get("X-Image-Size") ?? "",
    steps: Number(response.headers.get("X-Steps")),
    tokens: Number(response.headers.get("X-Prompt-Tokens")),
    truncated: response.headers.get("X-Prompt-Truncated") === "true",
    serverMs: serverTiming(response.headers.get("Server-Timing") ?? ""),
    latencyMs,
    startedAt,
  };
}

/** @param {{images: {b64: string, seed: number, media_type: string}[]}} envelope */
function filesOf({ images }) {
  return images.map(({ b64, seed, media_type: type }) => {
    const bytes = Uint8Array.from(atob(b64), (character) => character.charCodeAt(0));
    return { blob: new Blob([bytes], { type }), seed };
  });
}

/** @param {{blob: Blob, seed: number}} file @param {string} prompt @returns {Promise<Picture>} */
export async function decoded({ blob, seed }, prompt) {
  const image = new Image();
  image.src = URL.createObjectURL(blob);
  image.alt = prompt;
  try {
    await image.decode();
  } catch (error) {
    URL.revokeObjectURL(image.src);
    throw error;
  }
  return { blob, seed, url: image.src, image };
}

/** The stages that the service times; only uploads are decoded. A proxy may add other stages. */
const STAGES = ["decode", "queue", "inference", "encode"];

/**
 * Read `queue;dur=1.2, inference;dur=3.4` as {queue: 1.2, inference: 3.4}: milliseconds.
 *
 * @param {string} header @returns {Record<string, number>}
 */
function serverTiming(header) {
  const all = new Map([...header.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, stage, ms]) => [stage, Number(ms)]));
  return Object.fromEntries(STAGES.filter((stage) => all.has(stage)).map((stage) => [stage, all.get(stage) ?? 0]));
}

/** Free a result's pictures. @param {{pictures: Picture[]}} result */
export function release(result) {
  for (const { url } of result.pictures) URL.revokeObjectURL(url);
}

/** Return the readiness check's response, ready or not; null if it cannot be reached. */
export async function readiness() {
  try {
    const response = await fetch("healthz/ready", { signal: AbortSignal.timeout(5000) });
    const said = await response.json();
    return said.health ?? (response.ok ? said : null);
  } catch {
    return null;
  }
}
