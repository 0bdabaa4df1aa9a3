/** The page: form and source give a state, the follower turns it into a request, and the stage shows the result. */

import { connectActions, describeHistory } from "./actions.js";
import { fragmentOf, readFragment } from "./address.js";
import { $, all, buttonFor, remember, toast } from "./dom.js";
import { Follower } from "./follower.js";
import {
  changed, check, describeForm, drawSeed, fault, isLocked, lockSeed, moveStrength, read, readKey, setStartKind, write,
} from "./form.js";
import { examplesOf, hasStyle, stylesOf, surprise, toggleStyle } from "./ideas.js";
import { Notice } from "./notice.js";
import { part } from "./parts.js";
import { FACTS, fixed, generate, readiness, release } from "./service.js";
import { describeShortcuts, switchShortcuts } from "./shortcuts.js";
import { Sources } from "./sources.js";
import { Stage } from "./stage.js";
import { UnfitFile, lookAt } from "./start.js";
import { describePage, switchLanguage, t } from "./strings.js";

/** @typedef {import("./service.js").State} State */
/** @typedef {import("./service.js").Result} Result */

/** Browsers refuse more than about 100 changes of the address in half a minute. */
const ADDRESS_PAUSE_MS = 400;

/** The device's share of a picture's time. With more, a second request in flight mostly waits (benchmarks/live). */
const MOST_DEVICE_SHARE = 0.6;

const INVITATIONS = {
  text: "invitation",
  picture: "invitation_picture",
  draw: "invitation_draw",
  retouch: "invitation_retouch",
  camera: "invitation_camera",
};

/** @type {any} The readiness check's response; null if it cannot be reached, as a proxy may not publish it. */
let service;
/** @type {string | null} The last model that it named. */
let model = null;
let looks = 0; // number of files that were checked

const notice = new Notice();
const stage = new Stage({
  showAgain(result) {
    follower.drop(); // or the request in flight would replace it
    notice.hide();
    restore(result.state, { isQuiet: true });
    stage.show(result);
  },
  selected({ seed }) {
    write({ seed });
    rememberAddress();
  },
  kept: () => describeHistory(stage.history),
});
const sources = new Sources({
  changed: follow,
  switched() {
    describeState();
    describeSource();
    writeAddress();
  },
  failed: (text) => toast(text),
});
/** @type {Follower<State, Result>} */
const follower = new Follower(
  async (state, signal) => generate(await fixed(state), readKey(), signal),
  {
    began: () => stage.begin(),
    ended: () => stage.end(),
    made(result, { settled }) {
      if (notice.isShown) askService(); // the status line is out of date
      notice.clear();
      stage.add(result, { keep: settled && !result.state.isLive });
      rememberAddress();
    },
    failed,
    late: release,
    // While a drawing or a camera changes, the device is mostly idle, and nobody else waits for it.
    overlaps: ({ isLive }, { latencyMs, serverMs: { queue = 0, inference = latencyMs } }) =>
      Boolean(isLive) && inference < MOST_DEVICE_SHARE * latencyMs && queue < inference,
  },
);

/** How many changes of several things at once are under way. They are not followed before their end. */
let changing = 0;
/** The last of them; the next one begins after it. */
let lastChange = Promise.resolve();

/**
 * Change several things at once, after the changes that are under way.
 *
 * @param {() => Promise<void>} act
 */
function change(act) {
  changing += 1;
  lastChange = lastChange.then(act, act).finally(() => {
    changing -= 1;
  });
  return lastChange;
}

/** Show the settings that apply to the source, the canvas's size, whether undo is possible, and the styles. */
function describeState() {
  const { source, picture, easel } = sources;
  const starts = source === "camera" || (source === "draw" && easel?.isEmpty === false);
  const hasPicture = source === "picture" && picture !== null;
  const kind = source === "retouch" ? "mask" : starts || hasPicture ? "picture" : "none";
  setStartKind(kind, source === "retouch" || hasPicture);
  sources.fit($("size").value);
  $("undo").disabled = !easel?.canUndo;
  $("redo").disabled = !easel?.canRedo;
  describeStyles();
}

/** @returns {State} */
const stateOf = () => {
  const form = read();
  return { ...form, ...sources.read(form.size) };
};

/** Request a picture of the form's state, if it is valid. @param {{now?: boolean}} [options] */
function follow({ now = false } = {}) {
  if (changing) return;
  describeState();
  if (!isLocked()) drawSeed();
  if (!notice.isRetrying) notice.clear();
  const isPossible = check() && sources.isReady;
  const state = stateOf();
  rememberAddress();
  const isLetter = !now && !follower.isPaced && /^[a-z\d]$/i.test(state.prompt);
  if (isPossible && !isLetter && (state.prompt || state.start)) {
    notice.unhide();
    follower.want(state, { now });
    return;
  }
  follower.drop();
  notice.hide();
  if (!state.prompt && !state.start) stage.clear();
}

/**
 * Set form and source to a state.
 *
 * @param {Partial<State>} state
 * @param {{isQuiet?: boolean, notches?: number, keepsCanvas?: boolean}} [options] Whether no picture is asked for, by
 *   how many stops the strength changes, and whether the canvas in use stays as it is.
 */
async function restore(state, { isQuiet = false, notches = 0, keepsCanvas = false } = {}) {
  await change(async () => {
    const { source, start, mask } = state;
    const hasCanvas = keepsCanvas && sources.easel !== null && source === sources.source && sources.isReady;
    if (source === "draw" && !hasCanvas) {
      await sources.choose("draw");
    } else if (!hasCanvas) {
      if (start && mask?.file) await sources.retouch(start, mask.file);
      else if (start?.file) await sources.startFrom(start);
      else if (source === "text" && sources.source !== "text") await sources.choose("text");
    }
    write(state);
    if (notches) moveStrength(notches);
    sources.fit($("size").value);
    if (source !== "draw" || hasCanvas) return;
    if (start?.file) await sources.drawOn(start.file, { isAlone: true });
    else sources.clear();
  });
  if (!isQuiet) {
    follow({ now: true });
  } else if (!changing) {
    describeState();
    rememberAddress();
  }
}

/** @param {any} error @param {number | null} retryAt */
function failed(error, retryAt) {
  if (error.status === 401) {
    $("key-row").hidden = false;
    openSettings(true);
    fault("key", t(readKey() ? "key_unknown" : "key_missing"));
  }
  const marked = [...(error.fields ?? [])].filter(([field, reason]) => fault(field, reason));
  if (marked.length) openSettings(true);
  notice.show(error, { retryAt, isMarked: marked.length > 0 });
  if (retryAt === null && sources.source === "camera") { // or each frame would fail in the same way
    sources.stop();
    follower.drop();
  }
  if (error.code === "offline" || error.status === 503) askService();
}

// The service, and ideas for its model.

async function askService() {
  service = await readiness();
  model = service?.model ?? model;
  describeService();
}

function describeService() {
  const isDemo = model === "demo";
  $("licence").textContent = t(isDemo ? "licence_demo" : "licence");
  describeSource();
  if (service === undefined) return;
  const line = $("service");
  line.dataset.status = service?.status ?? "unknown";
  line.textContent = service?.model ? t("service", service) : t("service_unknown");
  if (service && service.status !== "ready") line.textContent += ` (${t("service_status", service)})`;
  const examples = examplesOf(isDemo);
  if ($("examples").textContent !== examples.join("")) $("examples").replaceChildren(...examples.map(exampleFor));
  $("styles").replaceChildren(...stylesOf(isDemo).map(({ key, text }) => {
    const button = buttonFor(t(key), () => setPrompt(toggleStyle($("prompt").value, text)));
    button.dataset.style = text;
    return button;
  }));
  describeStyles();
}

function describeSource() {
  const { source } = sources;
  const note = model === "demo" ? "note_demo" : model === "fake" ? "note_fake" : "note_model";
  $("invitation").textContent = t(INVITATIONS[source]);
  $("model-note").textContent = service === undefined ? "" : t(note);
}

/** Styles take the place of the examples once there is a prompt. */
function describeStyles() {
  const prompt = $("prompt").value;
  $("examples").hidden = prompt.trim() !== "";
  $("styles").hidden = !$("examples").hidden;
  for (const button of all("[data-style]")) button.ariaPressed = String(hasStyle(prompt, button.dataset.style ?? ""));
}

/** @param {string} text */
function setPrompt(text) {
  $("prompt").value = text;
  follow({ now: true });
}

/** @param {string} text */
function exampleFor(text) {
  const button = buttonFor(text, () => {
    setPrompt(text);
    $("prompt").focus();
  });
  button.title = text; // the label may be truncated
  return button;
}

// Prompt and settings.

/** Another picture of the same state. */
function drawAnother() {
  drawSeed();
  follow({ now: true });
}

$("prompt").addEventListener("input", (event) => {
  if (!(/** @type {InputEvent} */ (event).isComposing)) follow(); // an unfinished Chinese word is Latin letters
});
$("prompt").addEventListener("compositionend", () => follow());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  if (JSON.stringify(follower.pending) === JSON.stringify(stateOf())) follower.hurry();
  else if (stage.result?.state.prompt === read().prompt) drawAnother();
  else follow({ now: true });
});
$("surprise").addEventListener("click", () => setPrompt(surprise(model === "demo")));
$("panel").addEventListener("submit", (event) => event.preventDefault());
$("panel").addEventListener("input", ({ target }) => {
  const { id } = /** @type {HTMLElement} */ (target);
  if (["file", "key", "keep"].includes(id)) return; // these have their own listeners
  changed(target);
  follow();
});
$("feather").addEventListener("input", () => follow());
$("key").addEventListener("change", () => {
  keep("sessionStorage", "key", $("key").value);
  follow();
});
$("lock").addEventListener("click", () => lockSeed(!isLocked()));
for (const id of ["dice", "another"]) $(id).addEventListener("click", drawAnother);
$("retry").addEventListener("click", () => {
  if (notice.isRetrying) follower.retryNow();
  else follow();
});

/** On a phone the settings are a sheet over the page's end. @param {boolean} isOpen */
function openSettings(isOpen) {
  $("panel").classList.toggle("is-open", isOpen);
  $("open-settings").ariaExpanded = String(isOpen);
  // The sheet covers the lower half, so the picture moves to the upper one.
  if (isOpen && getComputedStyle($("panel")).position === "fixed") $("stage").scrollIntoView({ block: "start" });
}

$("open-settings").addEventListener("click", () => openSettings(!$("panel").classList.contains("is-open")));
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape") openSettings(false);
});

// The start of the picture.

for (const tab of all(".tabs [data-source]")) {
  tab.addEventListener("click", () => chooseSource(/** @type {any} */ (tab.dataset.source)));
}

/** @param {import("./address.js").Source} source */
function chooseSource(source) {
  if (source === "picture" && !sources.picture) {
    openSettings(true);
    $("file").click();
  } else if (source === "retouch" && !sources.isRetouching) {
    if (stage.picture) $("retouch").click();
    else if (sources.picture) sources.retouch(sources.picture);
    else sources.choose("retouch"); // the stage says what to do
  } else {
    sources.choose(source);
  }
}

/** @param {Blob} file @param {string} name @param {(picture: import("./service.js").Upload) => void} use */
async function take(file, name, use) {
  const look = ++looks;
  try {
    const picture = await lookAt(file, name);
    if (look === looks) use(picture);
  } catch (error) {
    if (!(error instanceof UnfitFile)) throw error;
    openSettings(true);
    fault("image", t(error.key, error.values));
  }
}

/** Start from a picture in the manner of the source in use. @param {import("./service.js").Upload} picture */
function startFrom(picture) {
  if (sources.source === "draw" && picture.file) sources.drawOn(picture.file, { isAlone: false });
  else if (sources.source === "retouch") sources.retouch(picture);
  else sources.startFrom(picture);
}

/** A file that says how it was made restores that; another one is a start picture. @param {File} file */
async function takeDropped(file) {
  const reads = sources.source === "text" || sources.source === "picture";
  const loaded = reads ? await part(() => import("./parameters.js")) : null;
  const made = await loaded?.readParameters(file);
  if (!made) {
    take(file, file.name, startFrom);
    return;
  }
  await restore({ ...made, source: "text" });
  const label = t("reuse");
  const act = () => take(file, file.name, (picture) => sources.startFrom(picture));
  toast(t("restored", { name: file.name }), { label, act });
}

let isImporting = false;
$("import").addEventListener("click", () => {
  isImporting = true;
  $("file").click();
});
$("file").addEventListener("cancel", () => {
  isImporting = false;
});
$("file").addEventListener("change", () => {
  const [file] = $("file").files ?? [];
  if (file) take(file, file.name, isImporting ? startFrom : (picture) => sources.startFrom(picture));
  isImporting = false;
  $("file").value = ""; // so that the same file can be chosen again
});
$("remove").addEventListener("click", () => {
  sources.startFrom(null);
  $("file").focus();
});
document.addEventListener("paste", (event) => {
  const { files: [file], types } = event.clipboardData ?? new DataTransfer();
  const target = /** @type {Element} */ (event.target);
  // Text from a word processor comes with its picture.
  const isForField = target.matches("input, textarea") && types.includes("text/plain");
  if (!file || isForField) return;
  event.preventDefault();
  take(file, file.name || t("pasted"), startFrom);
});

const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files") ?? false;
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
  const file = event.dataTransfer?.files[0];
  if (file) takeDropped(file);
});

$("camera-switch").addEventListener("click", () => sources.switchCamera());
$("device").addEventListener("change", () => sources.chooseDevice());
$("mirror").addEventListener("click", () => sources.mirror());
addEventListener("pagehide", () => sources.stop());

/** @param {string} layout */
function lay(layout) {
  document.body.dataset.layout = layout;
  for (const button of all("button[data-layout]")) button.ariaPressed = String(button.dataset.layout === layout);
  if (layout === "overlay") sources.unzoom(); // so that one lies over the other
  keep("localStorage", "layout", layout);
}

for (const button of all("button[data-layout]")) {
  button.addEventListener("click", () => lay(button.dataset.layout ?? "split"));
}

// The address: reload and a shared link bring the state back.

/** @type {ReturnType<typeof setTimeout> | undefined} */
let addressing;

let addressedAt = -Infinity;

function rememberAddress() {
  const waitMs = addressedAt + ADDRESS_PAUSE_MS - performance.now();
  if (waitMs <= 0) writeAddress();
  else addressing ??= setTimeout(writeAddress, waitMs);
}

function writeAddress() {
  clearTimeout(addressing);
  addressing = undefined;
  addressedAt = performance.now();
  const state = { ...read(), source: sources.source };
  const fragment = state.prompt || state.source !== "text" ? fragmentOf(state) : "";
  if (fragment !== location.hash) history.replaceState(null, "", location.pathname + location.search + fragment);
}

async function readAddress() {
  const { source = "text", ...state } = readFragment(location.hash);
  if (!stage.result && $("prompt").value) delete state.prompt; // it was typed before the scripts were there
  await change(async () => {
    if (source !== sources.source && (source !== "picture" || sources.picture)) await sources.choose(source);
    write(state);
  });
  follow({ now: true });
  if (source === "picture" && !sources.picture) fault("image", t("link_without_picture"));
}

addEventListener("hashchange", readAddress);

// Language and theme, and what the browser stores. The page also works if the browser stores nothing.

/** @typedef {"localStorage" | "sessionStorage"} StorageName */

/** @param {StorageName} storage @param {string} name */
function recall(storage, name) {
  try {
    return window[storage].getItem(`turbo-${name}`);
  } catch {
    return null;
  }
}

/** @param {StorageName} storage @param {string} name @param {string} value */
function keep(storage, name, value) {
  try {
    window[storage].setItem(`turbo-${name}`, value);
  } catch {
    // the choice lasts for this visit
  }
}

/** Write all texts in the current language. */
function describe() {
  describePage();
  describeForm();
  describeService();
  sources.describe();
  stage.describe();
  notice.describe();
  describeHistory(stage.history);
  describeShortcuts();
}

$("language").addEventListener("click", async () => {
  await part(switchLanguage);
  describe();
});
$("theme").addEventListener("click", () => {
  const { dataset } = document.documentElement;
  const isDark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = isDark ? "light" : "dark";
  remember("theme", dataset.theme);
});
$("help").addEventListener("click", () => $("shortcuts").showModal());
$("use-shortcuts").addEventListener("change", () => {
  switchShortcuts($("use-shortcuts").checked);
  keep("localStorage", "shortcuts", $("use-shortcuts").checked ? "" : "off");
});

/** Favourites are not deleted by one wrong click. */
const mayForget = () => !stage.history.hasFavourites || confirm(t("forget_sure"));

/** @param {boolean} isKept */
async function keepHistory(isKept) {
  if (!isKept && !mayForget()) {
    $("keep").checked = true;
    return;
  }
  const keeps = isKept && (await stage.history.keep());
  if (!isKept) await stage.history.keepNot();
  if (isKept && !keeps) toast(t("store_none"));
  $("keep").checked = keeps;
  keep("localStorage", "keep", keeps ? "on" : "");
}

$("keep").addEventListener("change", () => keepHistory($("keep").checked));

$("key").value = recall("sessionStorage", "key") ?? "";
$("key-row").hidden = !FACTS.with_keys;
$("docs").hidden = !FACTS.docs;
$("use-shortcuts").checked = recall("localStorage", "shortcuts") !== "off";
switchShortcuts($("use-shortcuts").checked);
drawSeed();
connectActions({ stage, sources, mayForget, draw: restore });
describe();
lay(recall("localStorage", "layout") ?? "split");
if (recall("localStorage", "keep")) keepHistory(true);
askService();
readAddress();
