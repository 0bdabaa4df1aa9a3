/** The page: what is chosen becomes a state, the follower makes it a request, and what comes back is shown. */

import { codeFor } from "./code.js";
import { Follower } from "./follower.js";
import { History } from "./history.js";
import { FACTS, MAX_SEED, effectiveSteps, fileName, generate, readiness, release, smallestStrength } from "./service.js";
import { UnfitFile, lookAt } from "./start.js";
import { chooseLanguage, otherLanguage, t } from "./strings.js";

const SIZES = ["256x256", "512x512", "512x768", "768x512", "768x768", "1024x1024"];
const BEST_SIZE = "512x512";

const EXAMPLES = [
  "A cinematic shot of a baby racoon wearing an intricate italian priest robe.",
  "cat wizard, gandalf, lord of the rings, detailed, fantasy, cute, adorable, Pixar, Disney, 8k",
  "a lighthouse on a cliff in a storm, oil painting",
];
const DEMO_EXAMPLES = [
  "a fox with a scarf",
  "a racoon wearing a red robe",
  "mountains and a house at sunset",
  "a panda with a crown",
  "a white star above a blue circle",
];

/** Pictures of the last seconds count for the rate. */
const RATE_WINDOW_MS = 5000;

/** Screen readers are told of a picture when nothing has changed for so long. */
const SPEAK_AFTER_MS = 1000;

/** Where the page has the reason for what the service says of a field. */
const FAULTS_OF = { width: "size", height: "size" };

const $ = (id) => document.getElementById(id);
const panel = $("panel");

let start = null; // the picture to start from
let shown = null; // the result on the stage
let selected = 0; // which of its pictures
let notice = null; // {key, values, retryAt, canRetry}
let service = null; // what the readiness check said
let made = []; // {startedAt, at, pictures} of the last seconds
let looks = 0;
let speaking = 0;

// What the browser keeps. Storage can be forbidden, and the page does without.

function recall(storage, name) {
  try {
    return window[storage].getItem(`turbo-${name}`);
  } catch {
    return null;
  }
}

function remember(storage, name, value) {
  try {
    window[storage].setItem(`turbo-${name}`, value);
  } catch {
    // then it is for this visit
  }
}

// The state.

const isLocked = () => $("lock").ariaPressed === "true";
const drawSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

function read() {
  return {
    prompt: $("prompt").value.replace(/\s+/g, " ").trim(),
    steps: Number(panel.elements.steps.value),
    strength: Number($("strength").value),
    seed: Number($("seed").value),
    size: $("size").value,
    number: Number(panel.elements.number.value),
    start,
  };
}

function write(state) {
  $("prompt").value = state.prompt;
  panel.elements.steps.value = state.steps;
  panel.elements.number.value = state.number;
  $("strength").value = state.strength;
  $("seed").value = state.seed;
  setStart(state.start);
  $("size").value = state.size;
  lockSeed(true);
}

function lockSeed(locked) {
  $("lock").ariaPressed = locked;
  $("seed-hint").textContent = t(locked ? "seed_kept" : "seed_drawn");
}

function setStart(picture) {
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

// What is wrong with it.

function fault(field, text) {
  const place = $(`${field}-fault`);
  place.textContent = text;
  const control = $(field);
  if (control) control.ariaInvalid = text !== "";
}

function clearFaults() {
  for (const place of document.querySelectorAll(".fault")) if (place.textContent) fault(place.id.slice(0, -6), "");
  $("mend").hidden = true;
}

/** Say what cannot work, before it is sent. */
function check(state) {
  clearFaults();
  const mostSeed = MAX_SEED - state.number + 1;
  const seedFits = /^\d+$/.test($("seed").value.trim()) && state.seed <= mostSeed;
  if (!seedFits) fault("seed", t("seed_wrong", { most: mostSeed }));
  return checkSteps(state) && seedFits;
}

function checkSteps({ steps, strength }) {
  const effective = effectiveSteps(steps, strength);
  const values = { steps, effective, strength: strength.toFixed(2) };
  $("strength-value").textContent = values.strength;
  $("effective").textContent = effective < 1 ? "" : t(effective === 1 ? "effective_one" : "effective", values);
  if (!start || effective >= 1) return true;
  values.smallest = smallestStrength(steps).toFixed(2);
  fault("strength", t(steps === 1 ? "too_weak_one" : "too_weak", values));
  $("mend").textContent = t("mend", values);
  $("mend").hidden = false;
  return false;
}

// From the state to a request.

const follower = new Follower(
  (state, signal) => generate(state, $("key").value, signal),
  async () => (await readiness())?.queue.running_s * 1000, // NaN if not known
  {
    began: () => $("stage").classList.add("busy"),
    ended: () => $("stage").classList.remove("busy"),
    made(result, { settled }) {
      made.push({ startedAt: result.startedAt, at: performance.now(), pictures: result.pictures.length });
      if (notice) askService(); // what was said of it is old
      showNotice(null);
      show(result, settled);
    },
    failed,
  },
);

/** Have the picture follow. */
function follow() {
  if (!isLocked()) $("seed").value = drawSeed();
  const state = read();
  const possible = check(state);
  if (notice?.retryAt == null) showNotice(null);
  if (possible && (state.prompt || state.start)) {
    follower.want(state);
  } else {
    follower.drop();
    showNotice(null);
  }
}

function failed(error, retryAt) {
  const key = noticeFor(error);
  if (error.status === 401) {
    $("key-row").hidden = false;
    fault("key", error.detail);
  }
  let marked = false;
  for (const [param, detail] of error.fields ?? []) {
    const field = FAULTS_OF[param] ?? param;
    if (!$(`${field}-fault`)) continue;
    fault(field, detail);
    marked = true;
  }
  const values = { detail: error.detail ?? String(error) };
  showNotice({ key: marked ? "field_wrong" : key, values, retryAt, canRetry: retryAt !== null || error.status >= 500 });
  if (!error.status || error.status === 503) askService();
}

function noticeFor({ status, code }) {
  if (code === "rate_limited") return code;
  const keys = { 0: "offline", 401: "unauthorized", 403: "forbidden", 413: "too_large", 429: "busy", 503: "unavailable", 504: "slow" };
  return keys[status] ?? (status < 500 ? "refused" : "failed");
}

// What is shown.

function show(result, keep) {
  if (shown && !history.has(shown) && shown !== result) release(shown);
  shown = result;
  selected = 0;
  // What was on the way to something newer is seen and not kept: the strip would be full of half words.
  if (keep && !history.has(result)) history.add(result);
  $("empty").hidden = true;
  $("pictures").dataset.number = result.pictures.length;
  $("pictures").replaceChildren(...result.pictures.map(({ image }, index) => framed(image, index)));
  $("glow").src = result.pictures[0].url;
  for (const id of ["actions", "meter", "past", "glow"]) $(id).hidden = false;
  describeResult();
  clearTimeout(speaking);
  if (keep) speaking = setTimeout(() => ($("spoken").textContent = `${t("spoken")} ${result.state.prompt}`), SPEAK_AFTER_MS);
}

function framed(image, index) {
  image.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  if (shown.pictures.length === 1) return image;
  const button = document.createElement("button");
  button.type = "button";
  button.append(image);
  button.addEventListener("click", () => {
    selected = index;
    describeResult();
  });
  return button;
}

function describeResult() {
  history.describe(shown);
  if (!shown) return;
  const { pictures, steps, size, latencyMs, serverMs, tokens, truncated } = shown;
  const { seed, url } = pictures[selected];
  $("download").href = url;
  $("download").download = fileName(seed);
  if (pictures.length > 1) {
    for (const [index, button] of [...$("pictures").children].entries()) {
      button.ariaPressed = index === selected;
      button.title = t("made", { seed: pictures[index].seed });
    }
  }
  const ran = t(steps === 1 ? "made_steps_one" : "made_steps", { steps });
  $("made").textContent = [t("made", { seed }), ran, size.replace("x", "×")].join(" · ");
  describeTimes(latencyMs, serverMs);
  $("tokens").hidden = false;
  $("tokens").textContent = t("tokens", { used: tokens });
  $("truncated").hidden = !truncated;
  $("truncated").textContent = truncated ? t("truncated") : "";
  describeRate();
}

/** Say where the time went: what the service tells, and the rest, which is mostly the way there and back. */
function describeTimes(latencyMs, serverMs) {
  const { queue, inference, encode } = serverMs;
  const stages = { queue, inference, encode, rest: Math.max(0, latencyMs - queue - inference - encode) };
  const parts = Object.entries(stages).map(([stage, ms]) => {
    const part = document.createElement("i");
    part.className = stage;
    part.style.flexGrow = ms;
    const item = document.createElement("li");
    item.className = stage;
    item.textContent = t(stage, { ms: Math.round(ms) });
    return { part, item };
  });
  $("latency").textContent = t("latency", { ms: Math.round(latencyMs) });
  $("share").replaceChildren(...parts.map(({ part }) => part));
  $("stages").replaceChildren(...parts.map(({ item }) => item));
}

/** Say how many pictures a second came of late: from the first of them being asked for until now. */
function describeRate() {
  const now = performance.now();
  made = made.filter(({ at }) => at > now - RATE_WINDOW_MS);
  const pictures = made.reduce((sum, one) => sum + one.pictures, 0);
  const rate = made.length ? (pictures * 1000) / (now - made[0].startedAt) : 0;
  $("rate").textContent = made.length > 1 ? t("rate", { rate: rate.toFixed(1) }) : "";
}

function showNotice(what) {
  notice = what;
  $("notice").hidden = !notice;
  const retrying = notice && notice.retryAt !== null ? ` ${t("retrying")}` : "";
  const text = notice ? t(notice.key, notice.values) + retrying : "";
  if ($("notice-text").textContent !== text) $("notice-text").textContent = text; // or it would be read out again
  $("retry").hidden = !notice?.canRetry;
  describeCountdown();
}

/** Beside the text, as screen readers should not be told each second. */
function describeCountdown() {
  const leftMs = notice?.retryAt ? notice.retryAt - performance.now() : 0;
  $("notice-count").textContent = leftMs > 0 ? t("retry_in", { s: Math.ceil(leftMs / 1000) }) : "";
}

async function askService() {
  service = await readiness();
  describeService();
}

function describeService() {
  const line = $("service");
  line.dataset.status = service?.status ?? "unknown";
  line.textContent = service?.model ? t("service", service) : t("service_unknown");
  if (service && service.status !== "ready") line.textContent += ` (${t("service_status", service)})`;
  if (!service?.model) return;
  const isDemo = service.model === "demo";
  const note = isDemo ? "note_demo" : service.model.startsWith("fake") ? "note_fake" : "note_model";
  $("model-note").textContent = t(note);
  $("licence").textContent = `${t(isDemo ? "licence_demo" : "licence")} ${t("licence_terms")}`;
  const examples = isDemo ? DEMO_EXAMPLES : EXAMPLES;
  if ($("examples").childElementCount) return;
  $("examples").replaceChildren(
    ...examples.map((text) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", () => {
        $("prompt").value = text;
        follow();
      });
      return button;
    }),
  );
}

function speak(chosen) {
  chooseLanguage(chosen);
  const size = $("size").value;
  offerSizes(size || (start ? "" : BEST_SIZE));
  $("licence").textContent = `${t("licence")} ${t("licence_terms")}`;
  lockSeed(isLocked());
  check(read());
  describeService();
  describeResult();
  showNotice(notice);
}

const history = new History($("history"), (result) => {
  follower.drop(); // or what is on its way would be shown over it
  write(result.state);
  check(result.state);
  showNotice(null);
  show(result, false);
});

// What people do.

async function take(file, name) {
  const look = ++looks;
  try {
    const picture = await lookAt(file, name);
    if (look !== looks) return;
    startFrom(picture);
  } catch (error) {
    if (!(error instanceof UnfitFile)) throw error;
    fault("image", t(error.key, error.values));
  }
}

function startFrom(picture) {
  setStart(picture);
  // As the service has it: image to image takes two steps where nothing else is said.
  const { steps, strength } = read();
  if (steps === 1 && effectiveSteps(steps, strength) < 1) panel.elements.steps.value = 2;
  follow();
}

$("prompt").addEventListener("input", (event) => {
  if (!event.isComposing) follow(); // half a Chinese word is Latin letters
});
$("prompt").addEventListener("compositionend", follow);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  follow();
});
panel.addEventListener("submit", (event) => event.preventDefault());
panel.addEventListener("input", ({ target }) => {
  if (target.id === "file" || target.id === "key") return;
  if (target.id === "seed") lockSeed(true);
  follow();
});
$("key").addEventListener("change", () => {
  remember("sessionStorage", "key", $("key").value);
  fault("key", "");
  follow();
});
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) take(file, file.name);
  $("file").value = ""; // the same one can be chosen again
});
$("remove").addEventListener("click", () => {
  setStart(null);
  $("file").focus();
  follow();
});
$("reuse").addEventListener("click", () => {
  const { blob, seed, image } = shown.pictures[selected];
  startFrom({ file: blob, name: fileName(seed), width: image.naturalWidth, height: image.naturalHeight });
});
$("mend").addEventListener("click", () => {
  $("strength").value = smallestStrength(read().steps);
  $("strength").focus();
  follow();
});
$("lock").addEventListener("click", () => lockSeed(!isLocked()));
$("dice").addEventListener("click", () => {
  $("seed").value = drawSeed();
  follow();
});
$("retry").addEventListener("click", () => {
  if (notice.retryAt === null) follow();
  else follower.retryNow();
});

document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (!file) return;
  event.preventDefault();
  take(file, file.name || t("pasted"));
});
const hasFiles = (event) => event.dataTransfer.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  $("veil").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("veil").hidden = true;
});
document.addEventListener("drop", (event) => {
  $("veil").hidden = true;
  if (!hasFiles(event)) return;
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) take(file, file.name);
});

const codeButtons = [...document.querySelectorAll("[data-code]")];
function showCode(language) {
  for (const button of codeButtons) button.ariaPressed = button.dataset.code === language;
  $("code-text").textContent = codeFor(shown.state, language);
  $("copied").textContent = "";
}
for (const button of codeButtons) button.addEventListener("click", () => showCode(button.dataset.code));
$("show-code").addEventListener("click", () => {
  showCode(codeButtons.find((button) => button.ariaPressed === "true").dataset.code);
  $("code").showModal();
});
$("close-code").addEventListener("click", () => $("code").close());
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("code-text").textContent);
    $("copied").textContent = t("copied");
  } catch {
    // Without TLS browsers have no clipboard for pages of other machines.
    getSelection().selectAllChildren($("code-text"));
    $("copied").textContent = t("copy_by_hand");
  }
});

$("language").addEventListener("click", () => {
  remember("localStorage", "language", otherLanguage());
  speak(otherLanguage());
});
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = getComputedStyle(root).colorScheme === "dark" || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = isDark ? "light" : "dark";
  remember("localStorage", "theme", root.dataset.theme);
});

document.documentElement.dataset.theme = recall("localStorage", "theme") ?? "";
$("prompt").maxLength = FACTS.max_prompt_characters;
$("key").value = recall("sessionStorage", "key") ?? "";
$("key-row").hidden = !FACTS.with_keys;
$("docs").hidden = !FACTS.docs;
$("seed").value = drawSeed();
offerSizes(BEST_SIZE);
speak(recall("localStorage", "language"));
askService();
setInterval(() => {
  describeRate();
  describeCountdown();
}, 250);
