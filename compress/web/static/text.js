/** Kind `text`: all models write at once, each with an equal share of the thread. */

import { zeros } from "./bundle.js";
import { announce, caption, columns, field, make, nextFrame, slider, timeText } from "./dom.js";
import { freshSeed, uniform } from "./random.js";

const SHARE_MS = 7; // of a frame, for each model
const MOST = 5000; // characters

/** Show the demo of a character model. */
export function showText(root, models) {
  const { prompt: given, temperature } = models[0].processing;
  const pages = models.map((model) => new Page(model));
  const prompt = field("Prompt", { type: "text", value: given, spellcheck: "false", autocomplete: "off" });
  const heat = slider("Temperature", { min: 0, max: 1.5, step: 0.05, value: temperature, tell: (value) => value.toFixed(2), onInput: () => {} });
  const seed = field("Seed", { type: "number", min: 0, step: 1, value: 1 });
  const length = field("Characters", { type: "number", min: 1, max: MOST, step: 1, value: 500 });
  const problem = make("p", { class: "problem", role: "alert", hidden: true });
  const start = make("button", { type: "submit", class: "main", text: "Write" });
  const stop = make("button", { type: "button", text: "Stop", disabled: true, on: { click: () => (run.isStopped = true) } });
  const fresh = make("button", { type: "button", text: "New seed", on: { click: () => {
    seed.input.value = freshSeed();
    write();
  } } });
  let run = { isStopped: true, done: Promise.resolve() };

  const write = () => {
    problem.textContent = fault(models, prompt.input.value);
    problem.hidden = !problem.textContent;
    if (problem.textContent) return;
    const wanted = Math.max(1, Math.min(MOST, Number(length.input.value) || 1));
    const options = { prompt: prompt.input.value, heat: heat.value, seed: Number(seed.input.value) || 0, wanted };
    const before = run;
    before.isStopped = true;
    const mine = (run = { isStopped: false });
    mine.done = before.done.then(async () => {
      stop.disabled = false;
      await race(pages, mine, options);
      if (run !== mine) return;
      stop.disabled = true;
      announce(pages.map((page) => page.told).join(". "));
    });
  };
  const form = make("form", { class: "panel", on: { submit: (event) => {
    event.preventDefault();
    write();
  } } }, prompt.box, heat.box, make("div", { class: "pair" }, seed.box, length.box), make("div", { class: "tools" }, start, stop, fresh), problem);
  const told = models.length > 1 ? "Each model gets the same share of this thread, so the faster one is ahead." : "Character by character.";
  root.append(
    make("section", { "aria-labelledby": "writing" },
      make("h2", { id: "writing", text: "Go on with a text" }),
      make("p", { class: "told", text: told }),
      make("div", { class: "bench" }, form, columns(models, (model) => pages[models.indexOf(model)].parts))),
  );
  write();
}

/** Let all pages write until they are full or the run is stopped. */
async function race(pages, run, options) {
  for (const page of pages) page.begin(options);
  let isGoing = true;
  while (isGoing && !run.isStopped) {
    isGoing = false;
    for (const page of pages) {
      if (run.isStopped) break;
      isGoing = (await page.go(SHARE_MS, run)) || isGoing;
    }
    await nextFrame();
  }
  for (const page of pages) page.end();
}

/** Return what is wrong with a prompt, or nothing. */
function fault(models, prompt) {
  if (!prompt) return "The prompt is empty.";
  for (const { name, processing } of models) {
    const unknown = [...prompt].find((character) => !processing.alphabet.includes(character));
    if (unknown) return `${name} does not know the character “${unknown}”.`;
  }
  return "";
}

/** What one model writes. */
class Page {
  constructor(model) {
    this.model = model;
    this.remark = make("span", { class: "remark" });
    this.prompt = make("span", { class: "prompt" });
    this.written = make("span");
    this.caret = make("i", { class: "caret", "aria-hidden": "true" });
    this.meter = make("i", { class: "meter", "aria-hidden": "true" });
    this.parts = [caption(model, this.remark), this.meter, make("p", { class: "paper" }, this.prompt, this.written, this.caret)];
  }

  begin({ prompt, heat, seed, wanted }) {
    const { alphabet, states } = this.model.processing;
    Object.assign(this, { heat, wanted, count: 0, ms: 0, next: uniform(seed) });
    this.alphabet = [...alphabet];
    this.tokens = [...prompt].map((character) => this.alphabet.indexOf(character));
    this.state = Object.fromEntries(states.map(({ input, shape }) => [input, zeros(shape)]));
    this.prompt.textContent = prompt;
    this.written.textContent = "";
    this.caret.hidden = false;
    this.tell();
  }

  /** Write for some milliseconds; return whether there is more to write. */
  async go(share, run) {
    const end = performance.now() + share;
    let text = "";
    while (this.count < this.wanted && performance.now() < end && !run.isStopped) text += await this.step();
    this.written.append(text);
    this.tell();
    return this.count < this.wanted;
  }

  /** Read the last tokens, hand the states on, and return the next character. */
  async step() {
    const { tokens, logits, states } = this.model.processing;
    const read = { data: BigInt64Array.from(this.tokens, BigInt), shape: [1, this.tokens.length] };
    const { outputs, ms } = await this.model.run({ [tokens]: read, ...this.state });
    this.state = Object.fromEntries(states.map(({ input, output }) => [input, outputs[output]]));
    const token = drawn(outputs[logits].data.subarray(-this.alphabet.length), this.heat, this.next);
    this.tokens = [token];
    this.count += 1;
    this.ms += ms;
    return this.alphabet[token];
  }

  tell() {
    this.speed = this.ms ? `${Math.round((1000 * this.count) / this.ms).toLocaleString("en")} a second` : "";
    this.remark.textContent = this.speed;
    this.told = `${this.model.name} wrote ${this.count} characters, ${this.speed}`;
    this.meter.style.setProperty("--share", this.count / this.wanted);
  }

  end() {
    this.caret.hidden = true;
    this.remark.textContent = [timeText(this.ms), this.speed].filter(Boolean).join(", ");
  }
}

/** Draw a token of the softmax of logits / heat; without heat take the likeliest. */
function drawn(logits, heat, next) {
  const most = Math.max(...logits);
  if (heat === 0) return logits.indexOf(most);
  const powers = Array.from(logits, (each) => Math.exp((each - most) / heat));
  let left = next() * powers.reduce((a, b) => a + b, 0);
  const found = powers.findIndex((each) => (left -= each) < 0);
  return found < 0 ? powers.length - 1 : found;
}
