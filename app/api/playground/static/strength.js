/** How much of a start picture may change: the strengths that differ, and the steps that each one needs. */

import { effectiveSteps } from "./service.js";

/** The steps that the page offers. */
export const MOST_STEPS = 4;

/** @typedef {{strength: number, steps: number}} Stop */

/**
 * Return the strengths that can be chosen, weakest first. Each runs at least one step, and no two draw the same.
 *
 * The model runs int(steps * strength) of the steps, so only the fractions k/steps differ. A fraction that the wanted
 * steps cannot give gets as many steps as it needs.
 *
 * @param {number} wanted The steps that the user chose.
 * @returns {Stop[]}
 */
export function stopsOf(wanted) {
  /** @type {Map<number, Stop>} */
  const stops = new Map();
  for (let steps = wanted; steps <= MOST_STEPS; steps += 1) {
    for (let run = 1; run <= steps; run += 1) {
      if (!stops.has(run / steps)) stops.set(run / steps, { strength: strengthOf(run, steps), steps });
    }
  }
  return [...stops.entries()].sort(([one], [other]) => one - other).map(([, stop]) => stop);
}

/** The smallest strength, in hundredths, that runs a number of steps. @param {number} run @param {number} steps */
function strengthOf(run, steps) {
  let hundredths = Math.floor((run / steps) * 100);
  while (effectiveSteps(steps, hundredths / 100) < run) hundredths += 1;
  return hundredths / 100;
}

/** Return the index of the stop whose strength is nearest. @param {Stop[]} stops @param {number} strength */
export function nearest(stops, strength) {
  const distances = stops.map((stop) => Math.abs(stop.strength - strength));
  return distances.indexOf(Math.min(...distances));
}
