/** The variants side by side: time and size large, below them the proof. */

import { canCheck } from "./bundle.js";
import { make, reason, round, sizeText } from "./dom.js";
import { quantile } from "./timing.js";

/** What the page says of one model. */
export class Card {
  constructor(model, largest) {
    this.model = model;
    this.time = make("b", { class: "large", text: "–" });
    this.timeBar = make("i", { class: "bar", "aria-hidden": "true" });
    this.proof = make("p", { class: "proof", text: "Loading…" });
    const sizeBar = make("i", { class: "bar", "aria-hidden": "true" });
    sizeBar.style.setProperty("--share", model.told.size_bytes / largest);
    const size = split(sizeText(model.told.size_bytes));
    this.element = make("article", { class: "card" },
      make("h2", {}, model.name, make("span", { class: "chip", text: model.precision })),
      make("dl", {},
        entry("a call", [this.time, make("small", { text: "ms" })], this.timeBar),
        entry("to download", [make("b", { class: "large", text: size[0] }), make("small", { text: size[1] })], sizeBar),
      ),
      this.proof, ...qualityOf(model));
  }

  /** Say how the self-test went. */
  verified({ db, isRight, isEqual }) {
    const needs = this.model.told.least_db;
    const found = isEqual ? "equal in every bit" : `${Math.round(db)} dB`;
    const checked = canCheck() ? "SHA-256 matches" : "bytes not checked: browsers do that on https and localhost alone";
    this.judge(isRight, isRight ? `Verified here: ${found} (needs ${needs}${isEqual ? " dB" : ""})` : `Wrong here: ${found} (needs ${needs}). It is not used.`, checked);
  }

  /** Say why the model cannot be used. */
  failed(error) {
    this.judge(false, `Does not run here: ${reason(error)}`, "");
  }

  judge(isRight, text, more) {
    this.element.dataset.state = isRight ? "right" : "wrong";
    this.proof.className = `proof ${isRight ? "right" : "wrong"}`;
    this.proof.replaceChildren(make("span", { text }), ...(more ? [make("small", { text: more })] : []));
  }

  /** Show the median of the samples; bars are shares of the slowest. */
  timed(samples, slowest) {
    const ms = quantile(samples, 0.5);
    this.time.textContent = round(ms);
    this.timeBar.style.setProperty("--share", ms / slowest);
  }
}

function entry(label, value, bar) {
  return make("div", {}, make("dd", {}, ...value), make("dt", { text: label }), bar);
}

const split = (text) => text.split(" ");

/** Return how good the model is by its evidence; nothing where nobody measured it. */
function qualityOf({ told }) {
  const quality = told.evidence?.quality;
  if (!quality?.metric) return [];
  const better = quality.higher_is_better ? "more is better" : "less is better";
  const text = `${quality.metric}: ${digits(quality.value)}, the FP32 reference ${digits(quality.baseline)}`;
  return [make("p", { class: "quality" }, text, make("small", { text: `on ${quality.split ?? "test"} data; ${better}` }))];
}

const digits = (value) => (value >= 10 ? value.toFixed(2) : value.toFixed(3));
