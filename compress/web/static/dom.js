/** Elements, columns and words that every part of the page uses. */

/** Make an element. Keys of `about`: `class`, `text`, `on` (listeners), or attributes. */
export function make(tag, about = {}, ...children) {
  const element = document.createElement(tag);
  const { class: style, text, on = {}, ...attributes } = about;
  if (style) element.className = style;
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
  element.append(...children);
  return element;
}

/** Make a column for every model; `build(model)` gives its content. */
export function columns(models, build) {
  const made = models.map((model) => make("figure", { class: "column", "data-place": model.place }, ...build(model)));
  return make("div", { class: "columns" }, ...made);
}

/** Make the line above a column: the model's name, and beside it a remark that changes. */
export function caption(model, remark) {
  return make("figcaption", {}, make("b", { text: model.name }), remark);
}

let fields = 0;

/** Make a labelled input; `about` holds the input's attributes and listeners. */
export function field(label, about) {
  const id = `field-${(fields += 1)}`;
  const input = make("input", { id, ...about });
  const box = make("div", { class: `field of-${about.type}` }, make("label", { for: id, text: label }), input);
  return { box, input };
}

/** Make a labelled slider that shows its value. */
export function slider(label, { min, max, step, value, tell = String, onInput }) {
  const shown = make("output", { text: tell(value) });
  const made = field(label, { type: "range", min, max, step, value });
  const show = () => (shown.textContent = tell(Number(made.input.value)));
  made.input.addEventListener("input", () => {
    show();
    onInput();
  });
  made.box.querySelector("label").append(shown);
  const set = (to) => {
    made.input.value = to;
    show();
  };
  return { ...made, set, get value() { return Number(made.input.value); } };
}

/** Tell those who listen instead of look. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

/** Return a function that runs `work` soon, and once more if it was asked for meanwhile. */
export function latest(work) {
  let isRunning = false;
  let isWanted = false;
  return async () => {
    isWanted = true;
    if (isRunning) return;
    isRunning = true;
    try {
      while (isWanted) {
        isWanted = false;
        await work();
      }
    } finally {
      isRunning = false;
    }
  };
}

/** Let the browser draw; in a tab that nobody sees, wait a little. */
export const nextFrame = () =>
  new Promise((resolve) => (document.hidden ? setTimeout(resolve, 200) : requestAnimationFrame(resolve)));

/** Say a size like the command line does: 287 kB, 5.83 MB. */
export function sizeText(bytes) {
  if (bytes < 1e6) return `${round(bytes / 1e3)} kB`;
  return `${(bytes / 1e6).toFixed(2)} MB`;
}

/** Say milliseconds with three digits. */
export function timeText(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return `${round(ms)} ms`;
}

/** Say a number with three digits. */
export function round(value) {
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toFixed(digits);
}

/** Say what an error is, in one line. */
export function reason(error) {
  return String(error?.message ?? error).split("\n")[0].slice(0, 300);
}
