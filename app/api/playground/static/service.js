/** The service as the page sees it: requests, pictures, errors, readiness. */

export const MAX_SEED = 2 ** 32 - 1;

/** Facts of the service, which it writes into the page. */
export const FACTS = JSON.parse(document.documentElement.dataset.facts);

/** The steps that image to image runs, computed as the service does: int(num_inference_steps * strength). */
export const effectiveSteps = (steps, strength) => Math.trunc(steps * strength);

/** The smallest strength that runs one step, in hundredths as on the slider. */
export function smallestStrength(steps) {
  let hundredths = 1;
  while (effectiveSteps(steps, hundredths / 100) < 1) hundredths += 1;
  return hundredths / 100;
}

/**
 * Return the request for a state's pictures. The page sends it and the code to copy contains it, so they agree.
 *
 * @param state {prompt, steps, seed, size ("WIDTHxHEIGHT", or "" for the start picture's own), number, strength,
 *   start ({file, name}, or null)}
 */
export function requestOf(state) {
  const fields = { prompt: state.prompt, num_inference_steps: state.steps, seed: state.seed };
  if (state.start) fields.strength = state.strength;
  if (state.size) [fields.width, fields.height] = state.size.split("x").map(Number);
  const several = state.number > 1;
  if (several) fields.num_images = state.number;
  return { path: state.start ? "img2img" : "txt2img", fields, start: state.start, several };
}

/** The name of a picture's file. */
export const fileName = (seed) => `turbo-${seed}.png`;

/** An error response, or no response. `fields` has the reasons of invalid fields. */
export class Problem extends Error {
  constructor({ status = 0, code, detail, fields = new Map(), retryAfterS, retryable = false }) {
    super(detail);
    Object.assign(this, { status, code, detail, fields, retryAfterS, retryable });
  }
}

/** The response is a success, but not from this service. */
const foreign = (error) => new Problem({ code: "foreign", detail: String(error) });

const RETRYABLE = [429, 503, 504];

/** Read an error response, any part of which a proxy may have written. */
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
 * @returns {state, pictures: [{blob, url, seed, image}], size, steps, tokens, truncated, latencyMs, serverMs, startedAt}
 * @throws Problem
 */
export async function generate(state, key, signal) {
  const { path, fields, start, several } = requestOf(state);
  const headers = { Accept: several ? "application/json" : "image/png" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let body;
  if (start) {
    body = new FormData();
    for (const [name, value] of Object.entries(fields)) body.append(name, value);
    body.append("image", start.file, start.name);
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
    const files = several ? filesOf(JSON.parse(await blob.text())) : [{ blob, seed: state.seed }];
    // Decoded before they are shown, because the stage would flash otherwise.
    pictures = await Promise.all(files.map((file) => decoded(file, state.prompt)));
  } catch (error) {
    throw foreign(error);
  }
  if (signal.aborted) release({ pictures });
  return {
    state,
    pictures,
    size: response.headers.get("X-Image-Size"),
    steps: Number(response.headers.get("X-Steps")),
    tokens: Number(response.headers.get("X-Prompt-Tokens")),
    truncated: response.headers.get("X-Prompt-Truncated") === "true",
    serverMs: serverTiming(response.headers.get("Server-Timing") ?? ""),
    latencyMs,
    startedAt,
  };
}

function filesOf({ images }) {
  return images.map(({ b64, seed, media_type: type }) => {
    const bytes = Uint8Array.from(atob(b64), (character) => character.charCodeAt(0));
    return { blob: new Blob([bytes], { type }), seed };
  });
}

async function decoded({ blob, seed }, prompt) {
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

/** Read `queue;dur=1.2, inference;dur=3.4` as {queue: 1.2, inference: 3.4}: milliseconds. */
function serverTiming(header) {
  const all = new Map([...header.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, stage, ms]) => [stage, Number(ms)]));
  return Object.fromEntries(STAGES.filter((stage) => all.has(stage)).map((stage) => [stage, all.get(stage)]));
}

/** Free a result's pictures. */
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
