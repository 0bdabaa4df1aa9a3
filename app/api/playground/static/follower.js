/**
 * The newest state wins: which states of the page become requests, and when.
 *
 * At most one request is in flight. Of the states that are wanted meanwhile, only the newest is kept here. So fast
 * typing gives as many pictures as the device can make. A stale request in flight is finished and its picture shown: a
 * device cannot be interrupted, and a new request would start at the end of the queue.
 *
 * A second request may be in flight while the last answer says that the device waits for requests most of the time.
 */

/** The pause in typing before a request, as a share of the last picture's time: first letters alone are no prompt. */
const PAUSE_SHARE = 1 / 4;
const LONGEST_PAUSE_MS = 400;

/** The pause while no picture's time is known: a slow device would draw the first word before the whole prompt. */
const FIRST_PAUSE_MS = 300;

const LONGEST_BACKOFF_S = 30;

/**
 * @template State, Result
 */
export class Follower {
  #make;
  #on;
  /**
   * The newest unsent state, its time, and the time of the first unsent state that it replaced.
   * @type {{state: State, at: number, since: number} | null}
   */
  #wanted = null;
  /** The requests in flight, oldest first. @type {{state: State, aborter: AbortController}[]} */
  #flights = [];
  /** The last result, which tells whether another request would wait. @type {Result | null} */
  #last = null;
  /** @type {number | null} */
  #latencyMs = null;
  #failures = 0;
  #notBefore = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /**
   * @param {(state: State, signal: AbortSignal) => Promise<Result>} make Rejects with an error that may have
   *   `retryable` and `retryAfterS`.
   * @param {{began: () => void, made: (result: Result, about: {settled: boolean}) => void,
   *   failed: (error: any, retryAt: number | null) => void, ended: () => void,
   *   late?: (result: Result) => void, overlaps?: (state: State, last: Result) => boolean}} on
   *   Settled means that no newer state is wanted. `retryAt` is the time (of performance.now) of the next try. A late
   *   result came after a newer one, and is not shown. `overlaps` tells from the last result whether a second request
   *   for this state may be sent while one is in flight.
   */
  constructor(make, on) {
    this.#make = make;
    this.#on = on;
  }

  /** The newest state that has no picture yet. */
  get pending() {
    return this.#wanted?.state ?? this.#flights.at(-1)?.state ?? null;
  }

  /** Whether the time of a picture is known. */
  get isPaced() {
    return this.#latencyMs !== null;
  }

  /**
   * Want a picture of this state instead of any earlier one.
   *
   * @param {State} state
   * @param {{now?: boolean}} [options] Without the pause that waits for the next letter.
   */
  want(state, { now: isNow = false } = {}) {
    const now = performance.now();
    this.#wanted = { state, at: isNow ? -Infinity : now, since: this.#wanted?.since ?? now };
    this.#goOn();
  }

  /** Want no picture, and show none that was wanted before. The time of the next try stays. */
  drop() {
    clearTimeout(this.#timer);
    this.#wanted = null;
    this.#last = null;
    if (!this.#flights.length) return;
    for (const { aborter } of this.#flights.splice(0)) aborter.abort();
    this.#on.ended();
  }

  /** Send the wanted state without the pause that waits for the next letter. */
  hurry() {
    if (this.#wanted) this.#wanted.at = -Infinity;
    this.#goOn();
  }

  /** Send the next request now, without the wait after an error. */
  retryNow() {
    this.#notBefore = 0;
    this.#goOn();
  }

  #goOn() {
    clearTimeout(this.#timer);
    if (!this.#wanted || !this.#hasRoom(this.#wanted.state)) return;
    const { at, since } = this.#wanted;
    // While the user types without a pause, a request is sent after the time of one picture, once it is known.
    const latency = this.#latencyMs;
    const due = latency === null
      ? at + FIRST_PAUSE_MS
      : Math.min(at + Math.min(latency * PAUSE_SHARE, LONGEST_PAUSE_MS), since + latency);
    const waitMs = Math.max(due, this.#notBefore) - performance.now();
    if (waitMs > 0) this.#timer = setTimeout(() => this.#goOn(), waitMs);
    else this.#send();
  }

  /** @param {State} state */
  #hasRoom(state) {
    const { length } = this.#flights;
    if (length === 0) return true;
    return length === 1 && this.#last !== null && (this.#on.overlaps?.(state, this.#last) ?? false);
  }

  async #send() {
    if (!this.#wanted) return;
    const { state } = this.#wanted;
    const sentAt = performance.now();
    this.#wanted = null;
    const flight = { state, aborter: new AbortController() };
    const { signal } = flight.aborter;
    this.#flights.push(flight);
    this.#on.began();
    const made = await this.#make(state, signal).then((result) => ({ result }), (error) => ({ error }));
    if (signal.aborted) return;
    const place = this.#flights.indexOf(flight);
    if (place >= 0) this.#flights.splice(place, 1);
    if (place < 0 && "error" in made) return;
    if ("error" in made) {
      this.#last = null;
      this.#on.failed(made.error, made.error.retryable ? this.#retryLater(made.error, state) : null);
    } else if (place < 0) {
      this.#on.late?.(made.result);
      return;
    } else {
      this.#latencyMs = performance.now() - sentAt;
      this.#last = made.result;
      this.#failures = this.#notBefore = 0;
      this.#flights.splice(0, place); // what was sent before is out of date
      this.#on.made(made.result, { settled: this.#wanted === null && this.#flights.length === 0 });
    }
    if (!this.#flights.length) this.#on.ended();
    this.#goOn();
  }

  /** @param {{retryAfterS?: number}} error @param {State} state */
  #retryLater(error, state) {
    const waitS = error.retryAfterS ?? Math.min(2 ** this.#failures, LONGEST_BACKOFF_S);
    this.#failures += 1;
    this.#notBefore = performance.now() + waitS * 1000;
    this.#wanted ??= { state, at: 0, since: 0 };
    return this.#notBefore;
  }
}
