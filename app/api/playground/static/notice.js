/** What is said when a picture does not come, in place and not in a window, with the time until the next try. */

import { $ } from "./dom.js";
import { t } from "./strings.js";

const BY_STATUS = {
  401: "unauthorized",
  403: "forbidden",
  413: "too_large",
  429: "busy",
  503: "unavailable",
  504: "slow",
};

function textOf({ status, code }) {
  if (["rate_limited", "offline", "foreign"].includes(code)) return code;
  return BY_STATUS[status] ?? (status < 500 ? "refused" : "failed");
}

/** The units of a time to wait, and from how many seconds on each is used. */
const UNITS = [
  ["retry_in_h", 3600, 2 * 3600],
  ["retry_in_min", 60, 2 * 60],
  ["retry_in", 1, 0],
];

function timeText(seconds) {
  const [key, unit] = UNITS.find(([, , from]) => seconds >= from);
  return t(key, { time: Math.ceil(seconds / unit) });
}

function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text; // or it would be read out again
}

export class Notice {
  #said = null; // {key, values, retryAt, canRetry}
  #isHidden = false;

  constructor() {
    setInterval(() => this.#countDown(), 250);
  }

  get isShown() {
    return this.#said !== null && !this.#isHidden;
  }

  /** Whether it is tried again by itself. */
  get isRetrying() {
    return this.#said !== null && this.#said.retryAt !== null;
  }

  /**
   * Say what an error means.
   *
   * @param error A Problem, or whatever else went wrong.
   * @param retryAt The time (of performance.now) of the next try, or null if there is none.
   * @param isMarked Whether its reason stands beside a field.
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

  /** Say it no longer, but remember when the service may be asked again: until `unhide`, nothing is wanted of it. */
  hide() {
    if (!this.isRetrying) this.#said = null;
    this.#isHidden = true;
    this.describe();
  }

  unhide() {
    if (this.#isHidden && this.#said?.retryAt < performance.now()) this.#said = null; // nothing is waited for any more
    this.#isHidden = false;
    this.describe();
  }

  /** Say it in the language of now. */
  describe() {
    const hadFocus = document.activeElement === $("retry");
    $("notice").hidden = !this.isShown;
    $("retry").hidden = !this.#said?.canRetry;
    if (hadFocus && document.activeElement !== $("retry")) $("result").focus(); // and not from the top again
    say("notice-text", this.isShown ? t(this.#said.key, this.#said.values) : "");
    say("notice-retrying", this.isShown && this.isRetrying ? t("retrying") : "");
    this.#countDown();
  }

  /** To be seen instead of "retrying", as screen readers should not be told each second. */
  #countDown() {
    const leftS = this.isRetrying ? Math.ceil((this.#said.retryAt - performance.now()) / 1000) : 0;
    $("notice-count").textContent = leftS > 0 ? timeText(leftS) : "";
  }
}
