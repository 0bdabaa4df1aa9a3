/**
 * The newest state wins: which states of the page become requests, and when.
 *
 * At most one request is in flight. Of the states that are wanted meanwhile, only the newest is kept here. So fast typing
 * gives as many pictures as the device can make. A stale request in flight is finished and its picture shown: a device
 * cannot be interrupted, and a new request would start at the end of the queue.
 */

/** A pause in typing, as a share of the last picture's time, before a request: the first letters alone are no prompt. */
const PAUSE_SHARE = 1 / 4;
const LONGEST_PAUSE_MS = 400;
const FIRST_PAUSE_MS = 100;

const LONGEST_BACKOFF_S = 30;

export class Follower {
  #make;
  #on;
  #wanted = null; // the newest unsent state, its time, and the time of the first unsent state that it replaced
  #aborter = null; // of the request in flight
  #latencyMs = null;
  #failures = 0;
  #notBefore = 0;
  #timer = 0;

  /**
   * @param make (state, signal) => Promise of a result. Rejects with an error that has `retryable` and `retryAfterS`.
   * @param on `began()`; `made(result, {settled})`, where settled means that no newer state is wanted;
   *   `failed(error, retryAt)` with the time (of performance.now) of the next try, or null; `ended()`.
   */
  constructor(make, on) {
    this.#make = make;
    this.#on = on;
  }

  /** Want a picture of this state instead of any earlier one. */
  want(state) {
    const now = performance.now();
    this.#wanted = { state, at: now, since: this.#wanted?.since ?? now };
    this.#goOn();
  }

  /** Want no picture, and show none that was wanted before. The time of the next try stays. */
  drop() {
    clearTimeout(this.#timer);
    this.#wanted = null;
    if (!this.#aborter) return;
    this.#aborter.abort();
    this.#aborter = null;
    this.#on.ended();
  }

  /** Send the next request now, without the wait after an error. */
  retryNow() {
    this.#notBefore = 0;
    this.#goOn();
  }

  #goOn() {
    clearTimeout(this.#timer);
    if (!this.#wanted || this.#aborter) return;
    const { at, since } = this.#wanted;
    const latency = this.#latencyMs ?? FIRST_PAUSE_MS / PAUSE_SHARE;
    const paused = at + Math.min(latency * PAUSE_SHARE, LONGEST_PAUSE_MS);
    // While the user types without a pause, a request is sent after the time of one picture.
    const waitMs = Math.max(Math.min(paused, since + latency), this.#notBefore) - performance.now();
    if (waitMs > 0) this.#timer = setTimeout(() => this.#goOn(), waitMs);
    else this.#send();
  }

  async #send() {
    const { state } = this.#wanted;
    const sentAt = performance.now();
    this.#wanted = null;
    this.#aborter = new AbortController();
    const { signal } = this.#aborter;
    this.#on.began();
    const made = await this.#make(state, signal).then((result) => ({ result }), (error) => ({ error }));
    if (signal.aborted) return;
    this.#aborter = null;
    if (made.error) {
      this.#on.failed(made.error, made.error.retryable ? this.#retryLater(made.error, state) : null);
    } else {
      this.#latencyMs = performance.now() - sentAt;
      this.#failures = this.#notBefore = 0;
      this.#on.made(made.result, { settled: this.#wanted === null });
    }
    this.#on.ended();
    this.#goOn();
  }

  #retryLater(error, state) {
    const waitS = error.retryAfterS ?? Math.min(2 ** this.#failures, LONGEST_BACKOFF_S);
    this.#failures += 1;
    this.#notBefore = performance.now() + waitS * 1000;
    this.#wanted ??= { state, at: 0, since: 0 };
    return this.#notBefore;
  }
}
