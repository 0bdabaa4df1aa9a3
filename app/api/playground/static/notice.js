/** What is said when a picture does not come, in place and not in a window, with the time until the next try. */

import { $ } from "./dom.js";
import { t } from "./strings.js";

const BY_STATUS = {
  0: "offline",
  401: "unauthorized",
  403: "forbidden",
  413: "too_large",
  429: "busy",
  503: "unavailable",
  504: "slow",
};

function textOf({ status, code }) {
  if (code === "rate_limited") return code;
  return BY_STATUS[status] ?? (status < 500 ? "refused" : "failed");
}

export class Notice {
  #said = null; // {key, values, retryAt, canRetry}

  constructor() {
    setInterval(() => this.#countDown(), 250);
  }

  get isShown() {
    return this.#said !== null;
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
    const canRetry = retryAt !== null || !(error.status < 500);
    this.#said = { key: isMarked ? "field_wrong" : textOf(error), values, retryAt, canRetry };
    this.describe();
  }

  clear() {
    this.#said = null;
    this.describe();
  }

  /** Say it in the language of now. */
  describe() {
    $("notice").hidden = !this.isShown;
    $("retry").hidden = !this.#said?.canRetry;
    const text = this.isShown ? t(this.#said.key, this.#said.values) : "";
    const whole = this.isRetrying ? `${text} ${t("retrying")}` : text;
    if ($("notice-text").textContent !== whole) $("notice-text").textContent = whole; // or it would be read out again
    this.#countDown();
  }

  /** Beside the text, as screen readers should not be told each second. */
  #countDown() {
    const leftMs = this.isRetrying ? this.#said.retryAt - performance.now() : 0;
    $("notice-count").textContent = leftMs > 0 ? t("retry_in", { s: Math.ceil(leftMs / 1000) }) : "";
  }
}
