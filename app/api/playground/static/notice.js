/** The notice of an error, in place and not in a dialog, with the time until the next try. */

import { $ } from "./dom.js";
import { t } from "./strings.js";

/** @type {Record<number, string>} */
const BY_STATUS = {
  401: "unauthorized",
  403: "forbidden",
  413: "too_large",
  429: "busy",
  503: "unavailable",
  504: "slow",
};

/** @param {{status: number, code?: string}} error */
function textOf({ status, code }) {
  if (code && ["rate_limited", "offline", "foreign"].includes(code)) return code;
  return BY_STATUS[status] ?? (status < 500 ? "refused" : "failed");
}

/**
 * The units of a waiting time, in seconds, and the shortest time that each is used for.
 *
 * @type {[string, number, number][]}
 */
const UNITS = [
  ["retry_in_h", 3600, 2 * 3600],
  ["retry_in_min", 60, 2 * 60],
  ["retry_in", 1, 0],
];

/** @param {number} seconds */
function timeText(seconds) {
  const [key, unit] = UNITS.find(([, , from]) => seconds >= from) ?? UNITS[2];
  return t(key, { time: Math.ceil(seconds / unit) });
}

/** @param {string} id @param {string} text */
function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text; // a screen reader would read an unchanged text again
}

export class Notice {
  /** @type {{key: string, values: Record<string, any>, retryAt: number | null, canRetry: boolean} | null} */
  #said = null;
  #isHidden = false;

  constructor() {
    setInterval(() => this.#countDown(), 250);
  }

  get isShown() {
    return this.#said !== null && !this.#isHidden;
  }

  /** Whether the page will retry. */
  get isRetrying() {
    return this.#said !== null && this.#said.retryAt !== null;
  }

  /**
   * Show an error.
   *
   * @param {any} error A Problem, or any other error.
   * @param {{retryAt: number | null, isMarked: boolean}} about The time (of performance.now) of the next try, and
   *   whether the reason is shown beside a field.
   */
  show(error, { retryAt, isMarked }) {
    const values = { detail: error.detail ?? String(error) };
    this.#isHidden = false;
    const canRetry = retryAt !== null || !(error.status < 500);
    this.#said = { key: isMarked ? "field_wrong" : textOf(error), values, retryAt, canRetry };
    this.describe();
  }

  clear() {
    this.#said = null;
    this.describe();
  }

  /** Hide the error until `unhide`, but keep the time of the next try. */
  hide() {
    if (!this.isRetrying) this.#said = null;
    this.#isHidden = true;
    this.describe();
  }

  unhide() {
    if (this.#isHidden && (this.#said?.retryAt ?? Infinity) < performance.now()) this.#said = null; // the wait is over
    this.#isHidden = false;
    this.describe();
  }

  /** Write the text in the current language. */
  describe() {
    const hadFocus = document.activeElement === $("retry");
    $("notice").hidden = !this.isShown;
    $("retry").hidden = !this.#said?.canRetry;
    // Or the focus would move to the top of the page.
    if (hadFocus && document.activeElement !== $("retry")) $("result").focus();
    say("notice-text", this.#said && this.isShown ? t(this.#said.key, this.#said.values) : "");
    say("notice-retrying", this.isShown && this.isRetrying ? t("retrying") : "");
    this.#countDown();
  }

  /** Shown instead of "retrying", which screen readers read: they should not read a new time each second. */
  #countDown() {
    const leftS = Math.ceil(((this.#said?.retryAt ?? 0) - performance.now()) / 1000);
    $("notice-count").textContent = leftS > 0 ? timeText(leftS) : "";
  }
}
