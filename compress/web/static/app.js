/** The page: loads every variant, proves it here, times it here, and lets it be tried. */

import { Model, openSite } from "./bundle.js";
import { Card } from "./cards.js";
import { showClasses } from "./classes.js";
import { announce, make, nextFrame, reason, round, sizeText, timeText } from "./dom.js";
import { showImages } from "./images.js";
import { showPlain } from "./plain.js";
import { showText } from "./text.js";
import { measure, quantile, speed } from "./timing.js";

const DEMOS = { images: showImages, classes: showClasses, text: showText };
const part = (id) => document.getElementById(id);

async function main() {
  const site = await openSite();
  const models = site.bundle.variants.map((told) => new Model(told, site));
  const cards = showCards(models);
  describe(site);
  introduce(models);
  const right = [];
  for (const model of models) {
    if (await prove(model, cards.get(model))) right.push(model);
  }
  if (!right.length) {
    part("headline").textContent = "No variant of this model runs rightly in this browser.";
    part("lead").textContent = "Each says below why.";
    return;
  }
  introduce(right);
  const time = () => timeAll(right, cards);
  await time();
  part("again").addEventListener("click", time);
  (DEMOS[site.bundle.kind] ?? showPlain)(part("demo"), right);
  document.body.dataset.ready = "yes";
}

function showCards(models) {
  const largest = Math.max(...models.map((model) => model.told.size_bytes));
  const cards = new Map(models.map((model) => [model, new Card(model, largest)]));
  part("cards").append(...Array.from(cards.values(), (card) => card.element));
  return cards;
}

/** Say what runs here, and beside what. */
function introduce(models) {
  const names = models.map((each) => each.name);
  const all = names.length > 2 ? "all" : "both";
  const which = names[1] ? `${names.slice(0, -1).join(" and ")} beside ${names.at(-1)}, ${all} running` : `${names[0]} runs`;
  part("lead").textContent = `${which} in this tab on one thread. Nothing you do here leaves it.`;
  part("headline").replaceChildren(...claim(models, null));
}

function describe({ bundle, runtime, files }) {
  document.title = `${bundle.name} in this browser`;
  part("brand").textContent = `${bundle.name} ${bundle.version}`;
  const engine = Object.keys(files).filter((name) => name.startsWith("vendor/"));
  const bytes = engine.reduce((sum, name) => sum + files[name].size_bytes, 0);
  part("about").append(
    make("p", {}, `Runs on ${runtime.name} ${runtime.version} (WebAssembly, ${sizeText(bytes)} before compression, shared by all variants), `,
      make("a", { href: "ONNXRUNTIME-LICENSE.txt", text: "MIT licence" }), "."),
    ...bundle.licences.map((text) => make("p", { text })),
  );
}

/** Load a model and run its golden vectors; return whether it may be used. */
async function prove(model, card) {
  try {
    await model.load();
    const check = await model.verify();
    card.verified(check);
    await nextFrame();
    return check.isRight;
  } catch (error) {
    card.failed(error);
    return false;
  }
}

async function timeAll(models, cards) {
  part("again").disabled = true;
  part("under").hidden = false;
  let samples;
  await measure(models, (round) => {
    samples = round.samples;
    showTimes(models, cards, round);
  });
  part("again").disabled = false;
  announce(models.map((each) => `${each.name}: ${timeText(quantile(samples.get(each), 0.5))} a call`).join(", "));
}

function showTimes(models, cards, { done, total, samples }) {
  const slowest = Math.max(...Array.from(samples.values(), (each) => quantile(each, 0.5)));
  for (const model of models) cards.get(model).timed(samples.get(model), slowest);
  const reference = models.at(-1);
  const compared = models.length > 1 ? speed(samples.get(models[0]), samples.get(reference)) : null;
  if (compared) part("headline").replaceChildren(...claim(models, compared));
  const spread = compared ? `; ${round(compared.low)} to ${round(compared.high)} times the speed in 8 of 10 rounds` : "";
  const state = done < total ? `Measuring, round ${done} of ${total}` : `Median of ${total} paired rounds in this browser`;
  part("measured").textContent = `${state}: a batch of 1, one step${spread}.`;
}

/** Return the page's headline, line by line: the first variant beside the last. */
function claim(models, compared) {
  const line = (text, style = "") => make("span", { class: style, text });
  const [first, reference] = [models[0].told, models.at(-1).told];
  if (models.length === 1) return [line(`${first.name},`), line(`${sizeText(first.size_bytes)}, in this browser.`)];
  const smaller = reference.size_bytes / first.size_bytes;
  const size = smaller >= 1.5 ? `1/${Math.round(smaller)} of the size,` : `${round(1 / smaller)} of the size,`;
  return [line(size), compared ? line(`${compared.ratio.toFixed(1)} times the speed.`) : line("measuring the speed…", "waits")];
}

/** Say what went wrong in a demo, where it can be seen. */
addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  part("problem").hidden = false;
  part("problem").textContent = `Something failed here: ${reason(event.reason)}`;
});

main().catch((error) => {
  part("headline").textContent = "This page could not start.";
  part("lead").textContent = reason(error);
});
