/** The form: the state of prompt and settings, and its checks before a request. */

import { $ } from "./dom.js";
import { FACTS, MAX_SEED, effectiveSteps, smallestStrength } from "./service.js";
import { t } from "./strings.js";

const SIZES = ["256x256", "512x512", "512x768", "768x512", "768x768", "1024x1024"];
const BEST_SIZE = "512x512";

/** Fields of the service that share one control. */
const FIELDS = { width: "size", height: "size" };

/** Controls whose name is not their field's. */
const CONTROLS = { image: "file" };

const choices = $("panel").elements;

let start = null; // the picture to start from

export const isLocked = () => $("lock").ariaPressed === "true";

export function drawSeed() {
  [$("seed").value] = crypto.getRandomValues(new Uint32Array(1));
}

/** Return the form's state, in the shape that `requestOf` describes. */
export function read() {
  return {
    prompt: $("prompt").value.replace(/\s+/g, " ").trim(),
    steps: Number(choices.steps.value),
    strength: Number($("strength").value),
    seed: Number($("seed").value),
    size: $("size").value,
    number: Number(choices.number.value),
    start,
  };
}

/** Return the key to send; "" if there is none. */
export const readKey = () => $("key").value.trim();

/** Set the form to a state, and lock its seed. */
export function write(state) {
  $("prompt").value = state.prompt;
  choices.steps.value = state.steps;
  choices.number.value = state.number;
  $("strength").value = state.strength;
  $("seed").value = state.seed;
  setStart(state.start);
  $("size").value = state.size;
  lockSeed(true);
  check();
}

export function lockSeed(locked) {
  $("lock").ariaPressed = locked;
  $("seed-hint").textContent = t(locked ? "seed_kept" : "seed_drawn");
}

/** Start from a picture as `lookAt` returns it; null for none. */
export function setStart(picture) {
  if (picture === start) return;
  URL.revokeObjectURL($("thumbnail").src);
  start = picture;
  const wasFocused = document.activeElement === $("file");
  for (const id of ["drop", "file"]) $(id).hidden = start !== null;
  for (const id of ["chosen", "strength-row"]) $(id).hidden = start === null;
  if (start) {
    $("thumbnail").src = URL.createObjectURL(start.file);
    $("file-name").textContent = start.name;
    $("file-size").textContent = `${start.width}×${start.height}`;
    if (wasFocused) $("remove").focus();
  }
  offerSizes(start ? "" : BEST_SIZE);
}

/** Choose two steps, the service's default for image to image, if one step is too few for the strength. */
export function makeStepsFit() {
  const { steps, strength } = read();
  if (steps === 1 && effectiveSteps(steps, strength) < 1) choices.steps.value = 2;
}

/** Choose the smallest valid strength. */
export function mendStrength() {
  $("strength").value = smallestStrength(read().steps);
}

function offerSizes(chosen) {
  const fit = SIZES.filter((size) => size.split("x").reduce((width, height) => width * height) <= FACTS.max_pixels);
  const options = fit.map((size) => {
    const text = size.replace("x", "×");
    return new Option(size === BEST_SIZE ? t("size_best", { size: text }) : text, size);
  });
  if (start) options.unshift(new Option(t("size_auto"), ""));
  $("size").replaceChildren(...options);
  $("size").value = chosen;
  if ($("size").selectedIndex < 0) $("size").selectedIndex = options.length - 1;
}

/** Write all texts in the current language. */
export function describeForm() {
  offerSizes(start || $("size").value ? $("size").value : BEST_SIZE);
  lockSeed(isLocked());
  check();
}

/** Write a reason beside a field; "" removes it. Returns whether the page has a place for it. */
export function fault(field, text) {
  const isMarked = mark(field, text);
  speakFaults();
  return isMarked;
}

function mark(field, text) {
  const name = FIELDS[field] ?? field;
  const place = $(`${name}-fault`);
  if (!place) return false;
  place.textContent = text;
  $(CONTROLS[name] ?? name).ariaInvalid = text !== "";
  return true;
}

/** Announce faults to screen readers, whose focus is at the prompt while a setting is invalid. */
function speakFaults() {
  const faults = [...document.querySelectorAll(".fault:not(:empty)")].map((place) => place.textContent).join(" ");
  if ($("faults").textContent !== faults) $("faults").textContent = faults;
}

/** Mark invalid fields. Returns whether the form is valid. */
export function check() {
  for (const place of document.querySelectorAll(".fault:not(:empty)")) mark(place.id.replace(/-fault$/, ""), "");
  const { prompt, seed, number, steps, strength } = read();
  const most = MAX_SEED - number + 1;
  const seedFits = /^\d+$/.test($("seed").value.trim()) && seed <= most;
  if (!seedFits) mark("seed", t("seed_wrong", { most }));
  const keyFits = /^[!-~]*$/.test(readKey()); // a header can contain no other characters
  if (!keyFits) mark("key", t("key_wrong"));
  const fits = [checkPrompt(prompt), checkSteps(steps, strength), seedFits, keyFits];
  speakFaults();
  return fits.every(Boolean);
}

function checkPrompt(prompt) {
  const [length, most] = [[...prompt].length, FACTS.max_prompt_characters];
  const hasControls = /[\x00-\x1f\x7f]/.test(prompt);
  if (hasControls) mark("prompt", t("prompt_controls"));
  else if (length > most) mark("prompt", t("prompt_long", { length, most }));
  return !hasControls && length <= most;
}

function checkSteps(steps, strength) {
  const effective = effectiveSteps(steps, strength);
  const values = { steps, effective, strength: strength.toFixed(2), smallest: smallestStrength(steps).toFixed(2) };
  const isTooWeak = start !== null && effective < 1;
  $("strength-value").textContent = values.strength;
  $("effective").textContent = isTooWeak ? "" : t(effective === 1 ? "effective_one" : "effective", values);
  $("mend").hidden = !isTooWeak;
  $("mend").textContent = t("mend", values);
  if (isTooWeak) mark("strength", t(steps === 1 ? "too_weak_one" : "too_weak", values));
  return !isTooWeak;
}
