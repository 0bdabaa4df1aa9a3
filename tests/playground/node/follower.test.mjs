/** The newest state wins: which of the wanted states become requests, and when. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { Follower } from "../../../app/api/playground/static/follower.js";

/** Longer than any pause before a request. */
const AGES_MS = 2000;

/**
 * @typedef {object} Call A request that the follower made.
 * @property {string} state
 * @property {AbortSignal} signal
 * @property {number} at The time when it was sent.
 * @property {(result: string) => void} answer
 * @property {(error: object) => void} fail
 */

/** @type {Call[]} */
let calls;

/** @type {unknown[][]} What the follower reported, in order. */
let events;

/** Whether a second request may be in flight. */
let overlaps = false;

/** @type {Follower<string, string>} */
let follower;

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  mock.method(performance, "now", () => Date.now()); // so that there is one time, and the tests move it
  calls = [];
  events = [];
  /** @type {(state: string, signal: AbortSignal) => Promise<string>} */
  const make = (state, signal) =>
    new Promise((answer, fail) => {
      calls.push({ state, signal, at: performance.now(), answer, fail });
    });
  /** @type {(name: string) => (...values: unknown[]) => void} */
  const record = (name) => (...values) => events.push([name, ...values]);
  overlaps = false;
  follower = new Follower(make, {
    began: record("began"),
    made: record("made"),
    failed: record("failed"),
    ended: record("ended"),
    late: record("late"),
    overlaps: () => overlaps,
  });
});

afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

/** Let promises and what awaits them go on. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

/**
 * Let time pass in small steps, so that each timer fires at its own time.
 *
 * @param {number} ms
 */
async function pass(ms) {
  for (let passed = 0; passed < ms; passed += 1) {
    mock.timers.tick(1);
    await settle();
  }
}

const sent = () => calls.map(({ state }) => state);

/** @param {string} name */
const reported = (name) => events.filter(([event]) => event === name);

/** @returns {Call} */
const lastCall = () => /** @type {Call} */ (calls.at(-1));

/**
 * Want a state, wait until it is sent, and return its request.
 *
 * @param {string} state
 */
async function request(state) {
  const number = calls.length;
  follower.want(state);
  for (let passed = 0; passed < AGES_MS && calls.length === number; passed += 1) await pass(1);
  assert.equal(calls.length, number + 1, "no request was sent");
  return lastCall();
}

/**
 * Want a state, wait until it is sent, and let the service answer after a time.
 *
 * @param {string} state
 * @param {number} latencyMs
 */
async function finish(state, latencyMs) {
  const { answer } = await request(state);
  await pass(latencyMs);
  answer(`picture of ${state}`);
  await settle();
}

/** Want a state now, and return the time until its request in milliseconds. */
async function pauseBeforeRequest() {
  const wantedAt = performance.now();
  const { at } = await request("after a pause");
  return at - wantedAt;
}

/**
 * Let requests fail one after the other, beginning with the last one, and return the waits until the next tries, in
 * seconds.
 *
 * @param {number} times
 */
async function waitsAfterFailures(times) {
  const waits = [];
  for (let failures = 0; failures < times; failures += 1) {
    const failedAt = performance.now();
    const number = calls.length;
    lastCall().fail({ retryable: true });
    await settle();
    const [, , retryAt] = /** @type {[string, object, number]} */ (reported("failed").at(-1));
    mock.timers.tick(retryAt - failedAt - 1);
    assert.equal(calls.length, number, "the request was sent before the announced time");
    await pass(2);
    assert.equal(calls.length, number + 1, "no request was sent at the announced time");
    waits.push((retryAt - failedAt) / 1000);
  }
  return waits;
}

test("the first letter alone is not sent at once", async () => {
  follower.want("a");
  await pass(50);
  assert.deepEqual(sent(), []);
});

test("a state is sent after a pause, and only once", async () => {
  follower.want("a fox");
  await pass(AGES_MS);
  assert.deepEqual(sent(), ["a fox"]);
});

test("of the states before the first request only the newest is sent", async () => {
  for (const state of ["a", "a f", "a fox"]) {
    follower.want(state);
    await pass(20);
  }
  await pass(AGES_MS);
  assert.deepEqual(sent(), ["a fox"]);
});

test("at most one request is in flight", async () => {
  await request("one");
  for (const state of ["two", "three"]) {
    follower.want(state);
    await pass(AGES_MS);
  }
  assert.deepEqual(sent(), ["one"]);
});

test("of the states during a request only the newest is sent after it", async () => {
  await request("one");
  follower.want("two");
  follower.want("three");
  lastCall().answer("picture");
  await pass(AGES_MS);
  assert.deepEqual(sent(), ["one", "three"]);
});

test("a request whose state is stale is finished and its picture shown", async () => {
  await request("one");
  follower.want("two");
  await pass(AGES_MS);
  assert.equal(lastCall().signal.aborted, false);
  lastCall().answer("picture of one");
  await settle();
  assert.deepEqual(reported("made"), [["made", "picture of one", { settled: false }]]);
});

test("a result is settled if no newer state is wanted", async () => {
  await finish("a fox", 100);
  assert.deepEqual(reported("made"), [["made", "picture of a fox", { settled: true }]]);
});

test("the wait for a request's end counts as the pause", async () => {
  await finish("one", 1000);
  const { answer } = await request("two");
  follower.want("three");
  await pass(AGES_MS);
  answer("picture");
  await settle();
  assert.deepEqual(sent(), ["one", "two", "three"]);
});

test("each request that begins ends after its result", async () => {
  await finish("one", 100);
  (await request("two")).fail({ retryable: false });
  await settle();
  assert.deepEqual(
    events.map(([event]) => event),
    ["began", "made", "ended", "began", "failed", "ended"],
  );
});

test("the pause grows with the time of the last picture", async () => {
  await finish("fast", 100);
  const short = await pauseBeforeRequest();
  await pass(1000);
  lastCall().answer("picture");
  await settle();
  const long = await pauseBeforeRequest();
  assert.ok(short < long, `${short} ms after a fast picture, ${long} ms after a slow one`);
});

test("the pause stays below half a second however slow the pictures are", async () => {
  await finish("slow", 5000);
  assert.ok((await pauseBeforeRequest()) < 500);
});

test("whoever types without a pause gets a picture after the time of one", async () => {
  await finish("one", 800);
  const startedAt = performance.now();
  for (let letters = 1; letters <= 50; letters += 1) {
    follower.want("a".repeat(letters));
    await pass(20);
  }
  assert.equal(calls.length, 2);
  const waitedMs = lastCall().at - startedAt;
  assert.ok(waitedMs >= 780 && waitedMs <= 840, `it was sent after ${waitedMs} ms`);
});

test("a state that is wanted now is sent without a pause", async () => {
  follower.want("a fox", { now: true });
  await settle();
  assert.deepEqual(sent(), ["a fox"]);
});

test("a state that is wanted now waits for the end of the request in flight", async () => {
  await request("one");
  follower.want("two", { now: true });
  await pass(AGES_MS);
  assert.deepEqual(sent(), ["one"]);
  lastCall().answer("picture");
  await settle();
  assert.deepEqual(sent(), ["one", "two"]);
});

test("a state that is wanted now is sent instead of the one before it", async () => {
  follower.want("a f");
  follower.want("a fox", { now: true });
  await settle();
  assert.deepEqual(sent(), ["a fox"]);
  lastCall().answer("picture");
  await pass(AGES_MS);
  assert.deepEqual(sent(), ["a fox"]);
});

test("the pending state is the newest one that has no picture", async () => {
  const { answer } = await request("one");
  assert.equal(follower.pending, "one");
  follower.want("two");
  assert.equal(follower.pending, "two");
  answer("picture");
  await pass(AGES_MS);
  assert.equal(follower.pending, "two");
  lastCall().answer("picture");
  await settle();
  assert.equal(follower.pending, null);
});

test("nothing is pending after dropping", async () => {
  await request("one");
  follower.want("two");
  follower.drop();
  assert.equal(follower.pending, null);
});

test("the pace is known from the first picture on, and not from an error", async () => {
  (await request("one")).fail({ retryable: false });
  await settle();
  assert.equal(follower.isPaced, false);
  await finish("two", 100);
  assert.equal(follower.isPaced, true);
});

test("an error's state is tried again at the time that the service names", async () => {
  await request("a fox");
  const error = { retryable: true, retryAfterS: 3 };
  const retryAt = performance.now() + 3000;
  lastCall().fail(error);
  await settle();
  assert.deepEqual(reported("failed"), [["failed", error, retryAt]]);
  await pass(2999);
  assert.deepEqual(sent(), ["a fox"]);
  await pass(2);
  assert.deepEqual(sent(), ["a fox", "a fox"]);
});

test("without such a time the waits double up to half a minute", async () => {
  await request("a fox");
  assert.deepEqual(await waitsAfterFailures(7), [1, 2, 4, 8, 16, 30, 30]);
});

test("after a success the waits are short again", async () => {
  await request("a fox");
  assert.deepEqual(await waitsAfterFailures(3), [1, 2, 4]);
  lastCall().answer("picture");
  await settle();
  follower.want("a cat");
  await pass(AGES_MS);
  assert.deepEqual(await waitsAfterFailures(2), [1, 2]);
});

test("a newer state takes the place of the one that failed, but not before the time of the next try", async () => {
  (await request("one")).fail({ retryable: true, retryAfterS: 10 });
  await settle();
  follower.want("two");
  await pass(9990);
  assert.deepEqual(sent(), ["one"]);
  await pass(20);
  assert.deepEqual(sent(), ["one", "two"]);
});

test("even a state that is wanted now waits for the time of the next try", async () => {
  (await request("one")).fail({ retryable: true, retryAfterS: 10 });
  await settle();
  follower.want("two", { now: true });
  await pass(9990);
  assert.deepEqual(sent(), ["one"]);
});

test("a newer state that was wanted during a request is sent after its failure instead of it", async () => {
  await request("one");
  follower.want("two");
  lastCall().fail({ retryable: true, retryAfterS: 1 });
  await pass(AGES_MS);
  assert.deepEqual(sent(), ["one", "two"]);
});

test("an error that no retry can mend ends the state", async () => {
  await request("a fox");
  const error = { retryable: false };
  lastCall().fail(error);
  await pass(AGES_MS);
  assert.deepEqual(reported("failed"), [["failed", error, null]]);
  assert.deepEqual(sent(), ["a fox"]);
});

test("a retry by hand is sent at once", async () => {
  (await request("a fox")).fail({ retryable: true, retryAfterS: 60 });
  await settle();
  follower.retryNow();
  await settle();
  assert.deepEqual(sent(), ["a fox", "a fox"]);
  mock.timers.tick(70_000);
  await settle();
  assert.deepEqual(sent(), ["a fox", "a fox"]);
});

test("a retry by hand sends nothing if nothing is wanted", async () => {
  await finish("a fox", 100);
  follower.retryNow();
  await pass(AGES_MS);
  assert.deepEqual(sent(), ["a fox"]);
});

test("a dropped state is not sent", async () => {
  follower.want("a fox");
  follower.drop();
  await pass(AGES_MS);
  assert.deepEqual([calls, events], [[], []]);
});

test("dropping aborts the request in flight and ends it at once", async () => {
  await request("a fox");
  follower.drop();
  assert.equal(lastCall().signal.aborted, true);
  assert.deepEqual(events, [["began"], ["ended"]]);
});

for (const [outcome, end] of /** @type {[string, (call: Call) => void][]} */ ([
  ["result", (call) => call.answer("picture")],
  ["error", (call) => call.fail({ retryable: true })],
])) {
  test(`the ${outcome} of a dropped request is not reported`, async () => {
    await request("a fox");
    follower.drop();
    end(lastCall());
    await pass(AGES_MS);
    assert.deepEqual(events, [["began"], ["ended"]]);
    assert.deepEqual(sent(), ["a fox"]);
  });
}

test("what is wanted after dropping does not wait for the aborted request", async () => {
  await request("one");
  const [aborted] = calls;
  follower.drop();
  follower.want("two");
  await pass(AGES_MS);
  assert.deepEqual(sent(), ["one", "two"]);
  aborted.answer("picture of one");
  lastCall().answer("picture of two");
  await settle();
  assert.deepEqual(reported("made"), [["made", "picture of two", { settled: true }]]);
});

test("dropping does not shorten the wait after an error", async () => {
  (await request("one")).fail({ retryable: true, retryAfterS: 10 });
  await settle();
  follower.drop();
  follower.want("two");
  await pass(9990);
  assert.deepEqual(sent(), ["one"]);
  await pass(20);
  assert.deepEqual(sent(), ["one", "two"]);
});

/** Answer the first request, and then have two in flight. @returns {Promise<Call[]>} */
async function twoInFlight() {
  await finish("one", 100);
  overlaps = true;
  follower.want("two", { now: true });
  follower.want("three", { now: true });
  follower.want("four", { now: true });
  await settle();
  assert.deepEqual(sent(), ["one", "two", "three"]);
  return calls.slice(1);
}

test("a second request is sent while the last result allows it, and no third", async () => {
  const [two] = await twoInFlight();
  two.answer("picture of two");
  await settle();
  assert.deepEqual(sent(), ["one", "two", "three", "four"]);
  assert.deepEqual(reported("made").at(-1), ["made", "picture of two", { settled: false }]);
});

test("before the first result, and after an error, one request is in flight", async () => {
  overlaps = true;
  follower.want("one", { now: true });
  follower.want("two", { now: true });
  assert.deepEqual(sent(), ["one"]);
  lastCall().fail({ retryable: false });
  await pass(AGES_MS);
  assert.deepEqual(sent(), ["one", "two"]);
  follower.want("three", { now: true });
  assert.deepEqual(sent(), ["one", "two"]);
});

test("a result that comes after a newer one is late and not shown", async () => {
  const [two, three] = await twoInFlight();
  overlaps = false;
  three.answer("picture of three");
  await settle();
  two.answer("picture of two");
  await settle();
  assert.deepEqual(reported("made").map(([, result]) => result), ["picture of one", "picture of three"]);
  assert.deepEqual(reported("late"), [["late", "picture of two"]]);
  assert.equal(sent().at(-1), "four");
});

test("dropping aborts both requests, and the last of them to end ends the work", async () => {
  const both = await twoInFlight();
  const before = reported("ended").length;
  follower.drop();
  assert.ok(both.every(({ signal }) => signal.aborted));
  assert.equal(reported("ended").length, before + 1);
});
