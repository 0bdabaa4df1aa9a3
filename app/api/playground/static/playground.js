/** The page: the form gives a state, the follower turns it into a request, and the stage shows the result. */

import { codeFor } from "./code.js";
import { $, buttonFor } from "./dom.js";
import { Follower } from "./follower.js";
import {
  check, describeForm, drawSeed, fault, isLocked, lockSeed, makeStepsFit, mendStrength, read, readKey, setStart, write,
} from "./form.js";
import { Notice } from "./notice.js";
import { FACTS, fileName, generate, readiness } from "./service.js";
import { Stage } from "./stage.js";
import { UnfitFile, lookAt } from "./start.js";
import { chooseLanguage, otherLanguage, sentences, t } from "./strings.js";

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

let service; // the readiness check's response; null if it cannot be reached, as a proxy may not publish it
let model = null; // the last model that it named
let looks = 0; // number of files that were checked

const notice = new Notice();
const stage = new Stage((result) => {
  follower.drop(); // or the request in flight would replace it
  notice.hide();
  write(result.state);
  stage.show(result);
});
const follower = new Follower(
  (state, signal) => generate(state, readKey(), signal),
  {
    began: () => $("stage").classList.add("busy"),
    ended: () => $("stage").classList.remove("busy"),
    made(result, { settled }) {
      if (notice.isShown) askService(); // the status line is out of date
      notice.clear();
      stage.add(result, { keep: settled });
    },
    failed,
  },
);

/** Request a picture of the form's state, if it is valid. */
function follow() {
  if (!isLocked()) drawSeed();
  if (!notice.isRetrying) notice.clear();
  const isPossible = check();
  const state = read();
  if (isPossible && (state.prompt || state.start)) {
    notice.unhide();
    follower.want(state);
  } else {
    follower.drop();
    notice.hide();
  }
}

function failed(error, retryAt) {
  if (error.status === 401) {
    $("key-row").hidden = false;
    fault("key", t(readKey() ? "key_unknown" : "key_missing"));
  }
  const marked = [...error.fields].filter(([field, reason]) => fault(field, reason));
  notice.show(error, { retryAt, isMarked: marked.length > 0 });
  if (error.code === "offline" || error.status === 503) askService();
}

// The service, and examples for its model.

async function askService() {
  service = await readiness();
  model = service?.model ?? model;
  describeService();
}

function describeService() {
  const isDemo = model === "demo";
  $("licence").textContent = sentences(t(isDemo ? "licence_demo" : "licence"), t("licence_terms"), t("limits"), "");
  if (service === undefined) return;
  const line = $("service");
  line.dataset.status = service?.status ?? "unknown";
  line.textContent = service?.model ? t("service", service) : t("service_unknown");
  if (service && service.status !== "ready") line.textContent += ` (${t("service_status", service)})`;
  $("model-note").textContent = t(isDemo ? "note_demo" : model === "fake" ? "note_fake" : "note_model");
  const examples = isDemo ? DEMO_EXAMPLES : EXAMPLES;
  if ($("examples").textContent !== examples.join("")) $("examples").replaceChildren(...examples.map(exampleFor));
}

function exampleFor(text) {
  const button = buttonFor(text, () => {
    $("prompt").value = text;
    follow();
  });
  button.title = text; // the label may be truncated
  return button;
}

// Prompt and settings.

$("prompt").addEventListener("input", (event) => {
  if (!event.isComposing) follow(); // an unfinished Chinese word is Latin letters
});
$("prompt").addEventListener("compositionend", follow);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  follow();
});
$("panel").addEventListener("submit", (event) => event.preventDefault());
$("panel").addEventListener("input", ({ target }) => {
  if (target.id === "file" || target.id === "key") return; // these have their own listeners
  if (target.id === "seed") lockSeed(true);
  follow();
});
$("key").addEventListener("change", () => {
  remember("sessionStorage", "key", $("key").value);
  follow();
});
$("mend").addEventListener("click", () => {
  mendStrength();
  $("strength").focus();
  follow();
});
$("lock").addEventListener("click", () => lockSeed(!isLocked()));
$("dice").addEventListener("click", () => {
  drawSeed();
  follow();
});
$("retry").addEventListener("click", () => {
  if (notice.isRetrying) follower.retryNow();
  else follow();
});

// The picture to start from.

function startFrom(picture) {
  setStart(picture);
  makeStepsFit();
  follow();
}

async function take(file, name) {
  const look = ++looks;
  try {
    const picture = await lookAt(file, name);
    if (look === looks) startFrom(picture);
  } catch (error) {
    if (!(error instanceof UnfitFile)) throw error;
    fault("image", t(error.key, error.values));
  }
}

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) take(file, file.name);
  $("file").value = ""; // so that the same file can be chosen again
});
$("remove").addEventListener("click", () => {
  setStart(null);
  $("file").focus();
  follow();
});
$("reuse").addEventListener("click", () => {
  const { blob, seed, image } = stage.picture;
  startFrom({ file: blob, name: fileName(seed), width: image.naturalWidth, height: image.naturalHeight });
});
document.addEventListener("paste", (event) => {
  const { files: [file], types } = event.clipboardData;
  const isForField = event.target.matches?.("input, textarea") && types.includes("text/plain"); // such as text from a word processor
  if (!file || isForField) return;
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

// The code.

const codeButtons = [...document.querySelectorAll("[data-code]")];

function showCode(language) {
  for (const button of codeButtons) button.ariaPressed = button.dataset.code === language;
  $("code-text").textContent = codeFor(stage.result.state, language);
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
    // Without TLS, browsers give pages of other machines no clipboard.
    getSelection().selectAllChildren($("code-text"));
    $("copied").textContent = t("copy_by_hand");
  }
});

// Language and theme, and what the browser stores. The page also works if the browser stores nothing.

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
    // the choice lasts for this visit
  }
}

function speak(language) {
  chooseLanguage(language);
  describeForm();
  describeService();
  stage.describe();
  notice.describe();
}

$("language").addEventListener("click", () => {
  remember("localStorage", "language", otherLanguage());
  speak(otherLanguage());
});
$("theme").addEventListener("click", () => {
  const { dataset } = document.documentElement;
  const isDark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = isDark ? "light" : "dark";
  remember("localStorage", "theme", dataset.theme);
});

document.documentElement.dataset.theme = recall("localStorage", "theme") ?? "";
$("key").value = recall("sessionStorage", "key") ?? "";
$("key-row").hidden = !FACTS.with_keys;
$("docs").hidden = !FACTS.docs;
drawSeed();
speak(recall("localStorage", "language"));
askService();
