/** How long a call takes here: paired rounds, so that what disturbs one model disturbs all. */

import { nextFrame, timeText } from "./dom.js";

const ROUNDS = 30;
const LEAST_MS = 8; // of a sample: clocks in browsers are coarse on purpose
const MOST_CALLS = 256;

/**
 * Time all models on their first golden set.
 *
 * Every round takes a sample of each, in turns from the front and from the back. `onRound` gets
 * {done, total, samples}; samples are milliseconds of a call, by model and round.
 */
export async function measure(models, onRound) {
  const calls = new Map();
  for (const model of models) calls.set(model, await callsOf(model));
  const samples = new Map(models.map((model) => [model, []]));
  for (let round = 0; round < ROUNDS; round += 1) {
    const order = round % 2 ? [...models].reverse() : models;
    for (const model of order) {
      await nextFrame();
      samples.get(model).push(await model.time(model.golden[0].feeds, calls.get(model)));
    }
    onRound({ done: round + 1, total: ROUNDS, samples });
  }
}

/** Warm up, and return how many calls fill a sample. */
async function callsOf(model) {
  const { feeds } = model.golden[0];
  for (let calls = 1; ; calls *= 2) {
    const ms = await model.time(feeds, calls);
    if (ms * calls >= LEAST_MS || calls >= MOST_CALLS) return calls;
  }
}

/** The median of a model's last calls; the first ones may be left out. */
export class Clock {
  constructor(warmup = 0) {
    this.left = warmup;
    this.times = [];
  }

  get isWarm() {
    return this.times.length > 0;
  }

  get text() {
    return this.isWarm ? timeText(quantile(this.times, 0.5)) : "";
  }

  add(ms) {
    if (this.left > 0) this.left -= 1;
    else this.times = [...this.times.slice(-30), ms];
  }
}

/** Return the value below which a share of the values lies. */
export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * share;
  const low = Math.floor(place);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (place - low);
}

/** Return how many times as fast as the other a model is: {ratio, low, high} over the rounds. */
export function speed(own, others) {
  const ratios = own.map((ms, round) => others[round] / ms);
  return { ratio: quantile(ratios, 0.5), low: quantile(ratios, 0.1), high: quantile(ratios, 0.9) };
}
