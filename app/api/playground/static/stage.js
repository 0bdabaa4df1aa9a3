/** The stage: the current pictures, their figures, and the strip of earlier results. */

import { $, buttonFor } from "./dom.js";
import { History } from "./history.js";
import { FACTS, fileName, release } from "./service.js";
import { sentences, t } from "./strings.js";

/** The rate counts pictures of the last seconds, up to the last pause between a picture and the next request. */
const RATE_WINDOW_MS = 5000;
const RATE_PAUSE_MS = 1000;

/** Screen readers announce a picture after this time without a change. */
const SPEAK_AFTER_MS = 1000;

export class Stage {
  /** The result on the stage, as `generate` returns it; null at first. */
  result = null;
  #selected = 0;
  #history;
  #made = []; // {startedAt, at, pictures} of the results that the rate counts
  #speaking = 0;

  /** @param showAgain (result) => void: shows an earlier result. */
  constructor(showAgain) {
    this.#history = new History($("history"), showAgain);
    setInterval(() => this.#describeRate(), 500); // an old rate disappears
  }

  /** The selected picture of the result. */
  get picture() {
    return this.result.pictures[this.#selected];
  }

  /**
   * Show a new result, and count it.
   *
   * A result that is already stale is not kept in the strip, which would fill with half words.
   */
  add(result, { keep }) {
    const at = performance.now();
    if (result.startedAt > this.#made.at(-1)?.at + RATE_PAUSE_MS) this.#made = [];
    this.#made = this.#made.filter((one) => one.at > at - RATE_WINDOW_MS);
    this.#made.push({ startedAt: result.startedAt, at, pictures: result.pictures.length });
    if (keep) this.#history.add(result);
    this.show(result);
    if (keep) this.#speaking = setTimeout(() => this.#speak(), SPEAK_AFTER_MS);
  }

  /** Show a result. */
  show(result) {
    if (this.result && this.result !== result && !this.#history.has(this.result)) release(this.result);
    clearTimeout(this.#speaking);
    this.result = result;
    this.#selected = 0;
    $("empty").hidden = true;
    $("glow").src = result.pictures[0].url;
    for (const id of ["actions", "meter", "past", "glow"]) $(id).hidden = false;
    const { naturalWidth, naturalHeight } = result.pictures[0].image;
    this.#arrange(result.pictures.length, naturalWidth / naturalHeight);
    $("pictures").replaceChildren(...result.pictures.map(({ image }, index) => this.#framed(image, index)));
    this.describe();
  }

  #arrange(number, ratio) {
    const layout = { "--columns": Math.min(number, 2), "--rows": Math.ceil(number / 2), "--ratio": ratio };
    for (const [name, value] of Object.entries(layout)) $("pictures").style.setProperty(name, value);
  }

  #framed(image, index) {
    if (this.result.pictures.length === 1) return image;
    return buttonFor(image, () => {
      this.#selected = index;
      this.describe();
    });
  }

  /** Write all texts in the current language. */
  describe() {
    this.#history.describe(this.result);
    if (!this.result) return;
    const { pictures, steps, size, tokens, truncated } = this.result;
    const { seed, url } = this.picture;
    $("download").href = url;
    $("download").download = fileName(seed);
    if (pictures.length > 1) {
      for (const [index, button] of [...$("pictures").children].entries()) {
        button.ariaPressed = index === this.#selected;
        button.title = t("made", { seed: pictures[index].seed });
      }
    }
    const ran = t(steps === 1 ? "made_steps_one" : "made_steps", { steps });
    $("made").textContent = [t("made", { seed }), ran, size.replace("x", "×")].join(" · ");
    $("tokens").hidden = false;
    $("tokens").textContent = t("tokens", { used: tokens, most: FACTS.max_tokens });
    $("truncated").hidden = !truncated;
    $("truncated").textContent = truncated ? t("truncated", { most: FACTS.max_tokens }) : "";
    this.#describeTimes();
    this.#describeRate();
  }

  /** Show the time of each stage as the service reports it, and the rest, which is mostly the network. */
  #describeTimes() {
    const { latencyMs, serverMs } = this.result;
    const named = Object.values(serverMs).reduce((sum, ms) => sum + ms, 0);
    const stages = [...Object.entries(serverMs), ["rest", Math.max(0, latencyMs - named)]];
    const parts = stages.map(([stage, ms]) => {
      const part = document.createElement("i");
      part.className = stage;
      part.style.flexGrow = ms;
      const item = document.createElement("li");
      item.className = stage;
      const figure = document.createElement("b");
      figure.textContent = Math.round(ms);
      item.append(`${t(stage)} `, figure);
      return { part, item };
    });
    $("latency").textContent = t("latency", { ms: Math.round(latencyMs) });
    $("share").replaceChildren(...parts.map(({ part }) => part));
    $("stages").replaceChildren(...parts.map(({ item }) => item));
  }

  /** Show the pictures per second, from the first request to the last picture. */
  #describeRate() {
    const [first, last] = [this.#made[0], this.#made.at(-1)];
    const isStream = this.#made.length > 1 && last.at > performance.now() - RATE_WINDOW_MS;
    const pictures = this.#made.reduce((sum, one) => sum + one.pictures, 0);
    const rate = (pictures * 1000) / (last?.at - first?.startedAt);
    $("rate").textContent = isStream ? t("rate", { rate: rate.toFixed(1) }) : "";
  }

  #speak() {
    $("spoken").textContent = sentences(t("spoken"), this.result.state.prompt);
  }
}
