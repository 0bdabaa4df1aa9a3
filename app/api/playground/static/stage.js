/** The stage: the current pictures, their figures, and the strip of earlier results. */

import { $, all, buttonFor } from "./dom.js";
import { History } from "./history.js";
import { FACTS, fileName, release } from "./service.js";
import { sentences, t } from "./strings.js";

/** @typedef {import("./service.js").Result} Result */

/** The rate counts pictures of the last seconds, up to the last pause between a picture and the next request. */
const RATE_WINDOW_MS = 5000;
const RATE_PAUSE_MS = 1000;

/** A picture that is late is dimmed after this time. */
const LATE_AFTER_MS = 500;

/** Screen readers announce a picture after this time without a change. */
const SPEAK_AFTER_MS = 1000;

const NONE = "–";

export class Stage {
  /** The result on the stage; null if it is empty. @type {Result | null} */
  result = null;
  /** The address of what the picture is compared with; null for nothing. @type {string | null} */
  #before = null;
  #isComparing = false;
  /** The picture before this one. @type {Blob | null} */
  #previous = null;
  #selected = 0;
  #on;
  /** @type {{startedAt: number, at: number, pictures: number}[]} The results that the rate counts. */
  #made = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #speaking;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #late;

  /**
   * @param {{showAgain: (result: Result) => void, selected: (picture: import("./service.js").Picture) => void,
   *   kept: () => void}} on Called when an earlier result shall be shown, one of several pictures is selected, and the
   *   strip has changed.
   */
  constructor(on) {
    this.#on = on;
    this.history = new History($("history"), on.showAgain, on.kept);
    setInterval(() => this.#describeRate(), 500); // an old rate disappears
  }

  /** The selected picture of the result. */
  get picture() {
    return this.result?.pictures[this.#selected] ?? null;
  }

  /** A request is under way. */
  begin() {
    $("stage").classList.add("busy");
    $("stage").classList.remove("is-late");
    clearTimeout(this.#late);
    this.#late = setTimeout(() => $("stage").classList.add("is-late"), LATE_AFTER_MS);
  }

  /** No request is under way. */
  end() {
    clearTimeout(this.#late);
    $("stage").classList.remove("busy", "is-late");
  }

  /**
   * Show a new result, and count it.
   *
   * @param {Result} result
   * @param {{keep: boolean}} options A result that is already stale is not kept in the strip, which would fill with
   *   half words.
   */
  add(result, { keep }) {
    const at = performance.now();
    if (result.startedAt > (this.#made.at(-1)?.at ?? Infinity) + RATE_PAUSE_MS) this.#made = [];
    this.#made = this.#made.filter((one) => one.at > at - RATE_WINDOW_MS);
    this.#made.push({ startedAt: result.startedAt, at, pictures: result.pictures.length });
    if (keep) this.history.add(result);
    if ($("stage").classList.contains("busy")) this.begin(); // another one may be under way
    this.show(result);
    if (keep) this.#speaking = setTimeout(() => this.#speak(), SPEAK_AFTER_MS);
  }

  /** Show a result. @param {Result} result */
  show(result) {
    if (this.picture && this.result !== result) this.#previous = this.picture.blob;
    this.#leave(result);
    this.result = result;
    this.#selected = 0;
    $("empty").hidden = true;
    $("glow").hidden = false;
    $("glow").src = result.pictures[0].url;
    const { naturalWidth, naturalHeight } = result.pictures[0].image;
    this.#arrange(result.pictures.length, naturalWidth / naturalHeight);
    $("pictures").replaceChildren(...result.pictures.map(({ image }, index) => this.#framed(image, index)));
    this.describe();
  }

  /** Show nothing. */
  clear() {
    this.#leave(null);
    this.result = null;
    this.#made = [];
    $("pictures").replaceChildren();
    $("empty").hidden = false;
    $("glow").hidden = true;
    this.describe();
  }

  /** @param {Result | null} next */
  #leave(next) {
    clearTimeout(this.#speaking);
    if (this.result && this.result !== next && !this.history.has(this.result)) release(this.result);
  }

  /** @param {number} number @param {number} ratio */
  #arrange(number, ratio) {
    const layout = { "--columns": Math.min(number, 2), "--rows": Math.ceil(number / 2), "--ratio": ratio };
    for (const [name, value] of Object.entries(layout)) $("stage").style.setProperty(name, String(value));
  }

  /** @param {HTMLImageElement} image @param {number} index */
  #framed(image, index) {
    if (this.result?.pictures.length === 1) return image;
    return buttonFor(image, () => {
      this.#selected = index;
      this.describe();
      if (this.picture) this.#on.selected(this.picture);
    });
  }

  /** Compare the picture with its start, else with the one before. Or end that. */
  toggleCompare() {
    this.#isComparing = !this.#isComparing;
    this.#describeCompared();
  }

  #describeCompared() {
    const file = this.result?.state.start?.file ?? this.#previous;
    const isShown = this.#isComparing && this.picture !== null && file !== null;
    if (this.#before) URL.revokeObjectURL(this.#before);
    this.#before = isShown ? URL.createObjectURL(/** @type {Blob} */ (file)) : null;
    $("compare").ariaPressed = String(this.#isComparing);
    $("compare-view").hidden = !isShown;
    $("pictures").classList.toggle("compared", isShown);
    if (!this.#before || !this.picture) return;
    $("before").src = this.#before;
    $("after").src = this.picture.url;
  }

  /** Write all texts in the current language. */
  describe() {
    this.history.describe(this.result);
    document.body.toggleAttribute("data-shown", this.result !== null);
    this.#describeCompared();
    this.#describeTimes();
    this.#describeRate();
    $("tokens").textContent = $("made").textContent = "";
    $("truncated").hidden = true;
    if (!this.result || !this.picture) return;
    const { pictures, steps, size, tokens, truncated, state } = this.result;
    const { seed, url } = this.picture;
    $("download").href = url;
    $("download").download = fileName(state.prompt, this.picture);
    $("favourite").ariaPressed = String(this.history.isFavourite(this.result));
    if (pictures.length > 1) {
      for (const [index, button] of all("#pictures button").entries()) {
        button.ariaPressed = String(index === this.#selected);
        button.title = t("made", { seed: pictures[index].seed });
      }
    }
    const ran = t(steps === 1 ? "made_steps_one" : "made_steps", { steps });
    $("made").textContent = [t("made", { seed }), ran, size.replace("x", "×")].join(" · ");
    $("tokens").textContent = t("tokens", { used: tokens, most: FACTS.max_tokens });
    $("truncated").hidden = !truncated;
    $("truncated").textContent = truncated ? t("truncated", { most: FACTS.max_tokens }) : "";
  }

  /** Show the time of each stage as the service reports it, and the rest, which is mostly the network. */
  #describeTimes() {
    const { latencyMs, serverMs } = this.result ?? { latencyMs: 0, serverMs: { queue: 0, inference: 0, encode: 0 } };
    const named = Object.values(serverMs).reduce((sum, ms) => sum + ms, 0);
    const stages = [...Object.entries(serverMs), /** @type {const} */ (["rest", Math.max(0, latencyMs - named)])];
    const parts = stages.map(([stage, ms]) => {
      const part = document.createElement("i");
      part.className = stage;
      part.style.flexGrow = String(ms);
      const item = document.createElement("li");
      item.className = stage;
      const figure = document.createElement("b");
      figure.textContent = this.result ? String(Math.round(ms)) : NONE;
      item.append(`${t(stage)} `, figure);
      return { part, item };
    });
    $("latency").textContent = this.result ? t("latency", { ms: Math.round(latencyMs) }) : NONE;
    $("share").replaceChildren(...parts.map(({ part }) => part));
    $("stages").replaceChildren(...parts.map(({ item }) => item));
  }

  /** Show the pictures per second, from the first request to the last picture. */
  #describeRate() {
    const [first, last] = [this.#made[0], this.#made.at(-1)];
    const isStream = this.#made.length > 1 && last && last.at > performance.now() - RATE_WINDOW_MS;
    const pictures = this.#made.reduce((sum, one) => sum + one.pictures, 0);
    const rate = isStream ? (pictures * 1000) / (last.at - first.startedAt) : 0;
    $("rate").textContent = isStream ? t("rate", { rate: rate.toFixed(1) }) : "";
    const figures = this.result ? [$("rate").textContent, $("latency").textContent] : [];
    $("live-figures").textContent = figures.filter(Boolean).join(" · ");
  }

  #speak() {
    if (this.result) $("spoken").textContent = sentences(t("spoken"), this.result.state.prompt);
  }
}
