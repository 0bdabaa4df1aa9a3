/** The form: the state of prompt and settings, and its checks before a request. */

import { $, all } from "./dom.js";
import { FACTS, MAX_SEED, effectiveSteps } from "./service.js";
import { MOST_STEPS, nearest, stopsOf } from "./strength.js";
import { t } from "./strings.js";

/** @typedef {import("./service.js").State} State */

const SIZES = ["256x256", "512x512", "512x768", "768x512", "768x768", "1024x1024"];
const BEST_SIZE = "512x512";

/** Fields of the service that share one control. @type {Record<string, string>} */
const FIELDS = { width: "size", height: "size" };

/** Controls whose name is not their field's. @type {Record<string, string>} */
const CONTROLS = { image: "file" };

const choices = /** @type {Record<"steps" | "number", RadioNodeList>} */ (/** @type {unknown} */ ($("panel").elements));

/** The steps that the user chose; a weak strength may need more. */
let wantedSteps = 1;
/** The kind of start, and the steps and strength that each kind had last: a mask is a mode of its own. */
let kind = /** @type {"none" | "picture" | "mask"} */ ("none");
const last = { picture: { steps: 1, strength: 0.5 }, mask: { steps: 4, strength: 1 } };
/** Whether the size may follow the start picture's. */
let hasOwnSize = false;
/** The size of pictures that have no start picture. */
let fixedSize = BEST_SIZE;

export const isLocked = () => $("lock").ariaPressed === "true";

export function drawSeed() {
  $("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

/** Return the form's state, without what the picture starts from. */
export function read() {
  return {
    prompt: $("prompt").value.replace(/\s+/g, " ").trim(),
    steps: Number(choices.steps.value),
    strength: stop().strength,
    seed: Number($("seed").value),
    size: $("size").value,
    number: Number(choices.number.value),
    feather: Number($("feather").value),
  };
}

/** Return the key to send; "" if there is none. */
export const readKey = () => $("key").value.trim();

/** Set the form to a state, and lock its seed. Missing fields stay as they are. @param {Partial<State>} state */
export function write({ prompt, steps, strength, seed, size, number, feather }) {
  if (prompt !== undefined) $("prompt").value = prompt;
  if (number !== undefined) choices.number.value = String(number);
  if (feather !== undefined) $("feather").value = String(feather);
  if (steps !== undefined) setSteps(Math.max(1, Math.min(MOST_STEPS, steps)), strength);
  if (size !== undefined) offerSizes(size);
  if (seed !== undefined && seed <= MAX_SEED) {
    $("seed").value = String(seed);
    lockSeed(true);
  }
  check();
}

/** @param {boolean} locked */
export function lockSeed(locked) {
  $("lock").ariaPressed = String(locked);
  $("seed-hint").textContent = t(locked ? "seed_kept" : "seed_drawn");
}

// Steps and strength.

const stops = () => stopsOf(wantedSteps);
const stop = () => stops()[Math.min(Number($("strength").value), stops().length - 1)];

/**
 * Choose steps and a strength.
 *
 * @param {number} steps @param {number} [strength] By default it stays, as far as the steps allow.
 */
function setSteps(steps, strength = stop().strength) {
  wantedSteps = steps;
  const same = stops().filter((one) => one.steps === steps);
  const run = effectiveSteps(steps, strength); // a strength that runs as many steps draws the same
  const { strength: chosen } = same[nearest(same, run >= 1 ? run / steps : strength)];
  chooseStop(nearest(stops(), chosen));
}

/** Change the strength by a number of stops, as far as there are some. @param {number} by */
export function moveStrength(by) {
  const index = Number($("strength").value) + by;
  chooseStop(Math.max(0, Math.min(stops().length - 1, index)));
}

/** @param {number} index Of the stops. */
function chooseStop(index) {
  $("strength").max = String(stops().length - 1);
  $("strength").value = String(index);
  showSteps();
}

function showSteps() {
  choices.steps.value = String(kind === "none" ? wantedSteps : stop().steps);
}

/** The user has moved a control of the panel. @param {EventTarget | null} target */
export function changed(target) {
  const control = /** @type {HTMLInputElement} */ (target);
  if (control.id === "seed") lockSeed(true);
  if (control.name === "steps") {
    if (kind === "none") wantedSteps = Number(control.value);
    else setSteps(Number(control.value));
  }
  if (control.id === "strength") showSteps();
}

/**
 * Choose the kind of start.
 *
 * @param {typeof kind} next @param {boolean} ownSize Whether the size may follow the start picture's.
 */
export function setStartKind(next, ownSize) {
  if (next !== kind) {
    last[kind === "mask" ? "mask" : "picture"] = { steps: wantedSteps, strength: stop().strength };
    kind = next;
    const { steps, strength } = last[kind === "mask" ? "mask" : "picture"];
    wantedSteps = steps;
    chooseStop(nearest(stops(), strength));
    $("strength-row").hidden = kind === "none";
    describeStrength();
  }
  if (ownSize !== hasOwnSize) {
    if (ownSize) fixedSize = $("size").value;
    hasOwnSize = ownSize;
    offerSizes(ownSize ? "" : fixedSize);
  }
}

/** Whether the service draws a size. @param {string} size */
function isPossible(size) {
  const { least_side: least, most_side: most, side_multiple: unit } = FACTS;
  return size.split("x").map(Number).every((side) => side % unit === 0 && side >= least && side <= most);
}

/** @param {string} chosen */
function offerSizes(chosen) {
  const pixels = (/** @type {string} */ size) => size.split("x").map(Number).reduce((width, height) => width * height);
  const known = SIZES.includes(chosen) || !isPossible(chosen) ? SIZES : [...SIZES, chosen];
  const options = known.filter((size) => pixels(size) <= FACTS.max_pixels).map((size) => {
    const text = size.replace("x", "×");
    return new Option(size === BEST_SIZE ? t("size_best", { size: text }) : text, size);
  });
  if (hasOwnSize) options.unshift(new Option(t("size_auto"), ""));
  $("size").replaceChildren(...options);
  $("size").value = chosen;
  if ($("size").selectedIndex >= 0) return;
  $("size").value = BEST_SIZE;
  if ($("size").selectedIndex < 0) $("size").selectedIndex = options.length - 1;
}

/** Write all texts in the current language. */
export function describeForm() {
  offerSizes(hasOwnSize || $("size").value ? $("size").value : BEST_SIZE);
  lockSeed(isLocked());
  check();
}

/**
 * Write a reason beside a field; "" removes it. Returns whether the page has a place for it.
 *
 * @param {string} field @param {string} text
 */
export function fault(field, text) {
  const isMarked = mark(field, text);
  speakFaults();
  return isMarked;
}

/** @param {string} field @param {string} text */
function mark(field, text) {
  const name = FIELDS[field] ?? field;
  const place = $(`${name}-fault`);
  if (!place) return false;
  place.textContent = text;
  $(CONTROLS[name] ?? name).ariaInvalid = String(text !== "");
  return true;
}

const faults = () => all(".fault:not(:empty)");

/** Announce faults to screen readers, whose focus is at the prompt while a setting is invalid. */
function speakFaults() {
  const text = faults().map((place) => place.textContent).join(" ");
  if ($("faults").textContent !== text) $("faults").textContent = text;
}

/** Mark invalid fields. Returns whether the form is valid. */
export function check() {
  for (const place of faults()) mark(place.id.replace(/-fault$/, ""), "");
  const { prompt, seed, number } = read();
  const most = MAX_SEED - number + 1;
  const seedFits = /^\d+$/.test($("seed").value.trim()) && seed <= most;
  if (!seedFits) mark("seed", t("seed_wrong", { most }));
  const keyFits = /^[!-~]*$/.test(readKey()); // a header can contain no other characters
  if (!keyFits) mark("key", t("key_wrong"));
  describeStrength();
  const fits = [checkPrompt(prompt), seedFits, keyFits];
  speakFaults();
  return fits.every(Boolean);
}

/** @param {string} prompt */
function checkPrompt(prompt) {
  const [length, most] = [[...prompt].length, FACTS.max_prompt_characters];
  const hasControls = /[\x00-\x1f\x7f]/.test(prompt);
  if (hasControls) mark("prompt", t("prompt_controls"));
  else if (length > most) mark("prompt", t("prompt_long", { length, most }));
  return !hasControls && length <= most;
}

function describeStrength() {
  const { steps, strength } = stop();
  const effective = effectiveSteps(steps, strength);
  $("strength-value").textContent = `${Math.round(strength * 100)} %`;
  $("effective").textContent = t(effective === 1 ? "effective_one" : "effective", {
    steps, effective, strength: strength.toFixed(2),
  });
  $("strength").setAttribute("aria-valuetext", $("strength-value").textContent ?? "");
}
