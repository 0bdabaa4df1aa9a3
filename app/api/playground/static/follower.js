/**
 * Latest wins: which states of the page become requests, and when.
 *
 * One request is in flight at most. What is wanted meanwhile waits here, and only the newest of it: so somebody who
 * types fast gets as many pictures as the device can make, each of what stood there when the device was free.
 *
 * A request in flight that has become stale is
 * - let finish and shown if the device has begun with it. A device cannot be interrupted: giving the picture up would
 *   save nothing, and if each key did that, nobody would see anything before they stop typing;
 * - aborted if it waits behind others. The service notices, drops it, and never makes its picture.
 * The readiness check tells the two apart: a call that has been running for longer than our request is under way began
 * before it, so ours is not in it. Whenever that is not certain, the request is let finish.
 *
 * Whoever aborts goes to the end of the queue, and an aborted request counts for the service's rate limit too. So it is
 * done only
 * - when a pause in typing shows that the newer state is meant to stay for a moment: else each picture of somebody who
 *   types on would be asked for twice or more, and come later;
 * - while the request is younger than the last picture took: an older one is about to be served;
 * - MOST_GIVEN_UP times in a row: on a busy service, too, somebody who never comes to rest sees pictures.
 */

const MOST_GIVEN_UP = 1;

/** The first letters of a word should not occupy a slow device; a fast one is asked at once. */
const PAUSE_SHARE = 1 / 4;
const LONGEST_PAUSE_MS = 400;
const FIRST_PAUSE_MS = 100;

const LONGEST_BACKOFF_S = 30;

export class Follower {
  #make;
  #runningFor;
  #on;
  #wanted = null; // the newest state that was not sent yet, and when it came, and when the first that it replaces came
  #flight = null;
  #latencyMs = null;
  #givenUp = 0;
  #failures = 0;
  #notBefore = 0;
  #timer = 0;

  /**
   * @param make (state, signal) => Promise of a result. Rejects with an error that has `retryable` and `retryAfterS`.
   * @param runningFor () => Promise of the milliseconds that the device's call has been running; NaN if not known.
   * @param on `began()`; `made(result, {settled})`, where settled says that nothing newer is wanted;
   *   `failed(error, retryAt)` with the time (of performance.now) of the next try, or null; `ended()`.
   */
  constructor(make, runningFor, on) {
    this.#make = make;
    this.#runningFor = runningFor;
    this.#on = on;
  }

  /** Want a picture of this state, and of none before it. */
  want(state) {
    const now = performance.now();
    this.#wanted = { state, at: now, since: this.#wanted?.since ?? now };
    this.#goOn();
  }

  /** Want nothing any more; nothing that was wanted before is shown. When the service may be asked again stays. */
  drop() {
    this.#wanted = null;
    this.#abort();
  }

  /** Do not wait until the service wants to be asked again. */
  retryNow() {
    this.#notBefore = 0;
    this.#goOn();
  }

  #goOn() {
    clearTimeout(this.#timer);
    if (!this.#wanted) return;
    const { at, since } = this.#wanted;
    const latency = this.#latencyMs ?? FIRST_PAUSE_MS / PAUSE_SHARE;
    const paused = at + Math.min(latency * PAUSE_SHARE, LONGEST_PAUSE_MS);
    // Who types without a pause waits for no longer than a picture takes.
    const due = this.#flight ? paused : Math.max(Math.min(paused, since + latency), this.#notBefore);
    const waitMs = due - performance.now();
    if (waitMs > 0) this.#timer = setTimeout(() => this.#goOn(), waitMs);
    else if (this.#flight) this.#giveUpIfItWaits();
    else this.#send();
  }

  async #send() {
    const { state } = this.#wanted;
    const flight = { aborter: new AbortController(), sentAt: performance.now() };
    const { signal } = flight.aborter;
    this.#wanted = null;
    this.#flight = flight;
    this.#on.began();
    const made = await this.#make(state, signal).then((result) => ({ result }), (error) => ({ error }));
    if (signal.aborted) return;
    this.#flight = null;
    if (made.error) {
      this.#on.failed(made.error, made.error.retryable ? this.#retryLater(made.error, state) : null);
    } else {
      this.#latencyMs = performance.now() - flight.sentAt;
      this.#givenUp = this.#failures = this.#notBefore = 0;
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

  async #giveUpIfItWaits() {
    const flight = this.#flight;
    const wanted = this.#wanted;
    const isOld = performance.now() - flight.sentAt > (this.#latencyMs ?? Infinity);
    if (isOld || this.#givenUp >= MOST_GIVEN_UP) return;
    const runningMs = await this.#runningFor();
    // Compared with our request's age now, which is more than it was when the service answered.
    const waits = runningMs > performance.now() - flight.sentAt;
    if (this.#flight !== flight || this.#wanted !== wanted || !waits) return;
    this.#givenUp += 1;
    this.#abort();
    this.#goOn();
  }

  #abort() {
    clearTimeout(this.#timer);
    if (!this.#flight) return;
    this.#flight.aborter.abort();
    this.#flight = null;
    this.#on.ended();
  }
}
