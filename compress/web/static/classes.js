/** Kind `classes`: draw, choose or upload a picture, and every model says what it sees. */

import { announce, caption, columns, field, latest, make, reason, slider } from "./dom.js";
import { Clock } from "./timing.js";

const BEST = 5;
const PAD = 320; // least width of the canvas that is drawn on

/** Show the demo of a classifier. */
export function showClasses(root, models) {
  const pad = new Pad(shapeOf(models[0]), () => guess());
  const boards = new Map(models.map((model) => [model, new Board(model)]));
  const guess = latest(async () => {
    pad.preview();
    const found = [];
    for (const [model, board] of boards) {
      const { guesses, ms } = await classify(model, pad.small(shapeOf(model)));
      board.show(guesses, ms);
      found.push(`${model.name}: ${guesses[0].label}, ${percent(guesses[0].share)}`);
    }
    tell(`${found.join(". ")}.`);
  });
  const examples = goldenPictures(models[0]);
  root.append(
    make("section", { "aria-labelledby": "seeing" },
      make("h2", { id: "seeing", text: "What is it?" }),
      make("div", { class: "bench" },
        make("div", { class: "panel" }, pad.box, thumbnails(examples, pad), ...pad.tools),
        columns(models, (model) => boards.get(model).parts))),
  );
  if (examples.length) pad.place(examples.at(-1));
  else guess();
}

let telling = 0;

/** Announce results when the hand rests, not at every move. */
function tell(text) {
  clearTimeout(telling);
  telling = setTimeout(() => announce(text), 700);
}

/** The canvas to draw on; light on black, as the models were trained. */
class Pad {
  constructor(shape, onChange) {
    const { height, width } = shape;
    // A power of two times the model's pixels: halving gives an example back as it was.
    const zoom = 2 ** Math.max(0, Math.ceil(Math.log2(PAD / width)));
    Object.assign(this, { shape, onChange, isInverted: false });
    this.canvas = make("canvas", { class: "pad", width: width * zoom, height: height * zoom, role: "img", "aria-label": "Drawing area, for a pointer or a finger" });
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.seen = make("canvas", { class: "seen", width, height, role: "img", "aria-label": `What the models see, ${width} × ${height} pixels` });
    this.box = make("div", { class: "pads" }, this.canvas, make("div", { class: "seen-box" }, this.seen, make("small", { text: `What the models see: ${width} × ${height}` })));
    this.tools = this.makeTools();
    this.listen();
    this.clear();
  }

  makeTools() {
    this.brush = slider("Brush", { min: 6, max: 60, step: 2, value: 26, onInput: () => {} });
    const invert = field("Invert: the picture is dark on white", { type: "checkbox", on: { change: () => this.invert(invert.input.checked) } });
    this.inverter = invert.input;
    const upload = field("Upload a picture", { type: "file", accept: "image/*", on: { change: () => this.upload(upload.input) } });
    this.problem = make("p", { class: "problem", role: "alert", hidden: true });
    const clear = make("button", { type: "button", text: "Clear", on: { click: () => {
      this.clear();
      this.onChange();
    } } });
    return [make("div", { class: "tools" }, this.brush.box, clear), invert.box, upload.box, this.problem];
  }

  listen() {
    let before = null;
    const stroke = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const now = [((event.clientX - box.left) / box.width) * this.canvas.width, ((event.clientY - box.top) / box.height) * this.canvas.height];
      this.line(before ?? now, now);
      before = now;
      this.onChange();
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      before = null;
      stroke(event);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (this.canvas.hasPointerCapture(event.pointerId)) stroke(event);
    });
  }

  line(from, to) {
    const { context } = this;
    context.strokeStyle = this.isInverted ? "black" : "white";
    context.lineCap = "round";
    context.lineWidth = (this.brush.value * this.canvas.width) / PAD;
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
  }

  clear() {
    this.context.fillStyle = this.isInverted ? "white" : "black";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** Put a picture in the middle, as large as it fits. */
  place(picture, isInverted = false) {
    this.problem.hidden = true;
    this.isInverted = this.inverter.checked = isInverted;
    this.clear();
    const zoom = Math.min(this.canvas.width / picture.width, this.canvas.height / picture.height);
    const [width, height] = [picture.width * zoom, picture.height * zoom];
    this.context.imageSmoothingEnabled = zoom < 1;
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(picture, (this.canvas.width - width) / 2, (this.canvas.height - height) / 2, width, height);
    this.onChange();
  }

  async upload(input) {
    const [file] = input.files;
    if (!file) return;
    this.problem.hidden = true;
    try {
      const picture = await createImageBitmap(file);
      this.place(picture, isLightAround(picture));
    } catch (error) {
      this.problem.textContent = `${file.name} is no picture that this browser reads: ${reason(error)}`;
      this.problem.hidden = false;
    }
  }

  invert(isInverted) {
    this.isInverted = isInverted;
    this.onChange();
  }

  /** Return what the models get: bytes (channels, height, width), light on black. */
  small({ channels, height, width }) {
    const small = make("canvas", { width, height });
    const context = small.getContext("2d", { willReadFrequently: true });
    context.drawImage(halved(this.canvas, width), 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    const area = width * height;
    const bytes = new Uint8ClampedArray(channels * area);
    for (let pixel = 0; pixel < area; pixel += 1) {
      const colour = data.subarray(4 * pixel, 4 * pixel + 3);
      const parts = channels === 1 ? [grey(colour)] : colour;
      for (let part = 0; part < channels; part += 1) {
        bytes[part * area + pixel] = this.isInverted ? 255 - parts[part % 3] : parts[part % 3];
      }
    }
    return bytes;
  }

  preview() {
    drawBytes(this.seen, this.small(this.shape), this.shape.channels);
  }
}

/** A model's best guesses as bars. */
class Board {
  constructor(model) {
    this.remark = make("span", { class: "remark" });
    this.list = make("ol", { class: "bars" });
    this.parts = [caption(model, this.remark), this.list];
    this.clock = new Clock();
  }

  show(guesses, ms) {
    this.clock.add(ms);
    this.remark.textContent = this.clock.text;
    while (this.list.children.length < guesses.length) {
      this.list.append(make("li", {}, make("span"), make("b"), make("i", { "aria-hidden": "true" })));
    }
    guesses.forEach(({ label, share }, at) => {
      const [name, number, bar] = this.list.children[at].children;
      name.textContent = label;
      number.textContent = percent(share);
      bar.style.setProperty("--share", share);
    });
  }
}

function thumbnails(examples, pad) {
  const buttons = examples.map((picture, at) => {
    picture.setAttribute("aria-hidden", "true");
    return make("button", { type: "button", class: "thumbnail", "aria-label": `Example ${at + 1} of ${examples.length}`, on: { click: () => pad.place(picture) } }, picture);
  });
  return make("div", { class: "thumbnails", role: "group", "aria-label": "Examples" }, make("small", { text: "Draw above, or take an example:" }), ...buttons);
}

async function classify(model, bytes) {
  const { image, logits, scale, offset, labels } = model.processing;
  const { channels, height, width } = shapeOf(model);
  const factor = Math.fround(scale); // float32 at every step, as in Python
  const data = Float32Array.from(bytes, (pixel) => Math.fround(pixel * factor) + offset);
  const { outputs, ms } = await model.run({ [image]: { data, shape: [1, channels, height, width] } });
  const shares = softmax(outputs[logits].data);
  const order = [...shares.keys()].sort((a, b) => shares[b] - shares[a]).slice(0, BEST);
  return { guesses: order.map((at) => ({ label: labels[at], share: shares[at] })), ms };
}

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (each) => Math.exp(each - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((each) => each / sum);
}

function shapeOf(model) {
  const [channels, height, width] = [1, 2, 3].map((at) => model.axis(model.processing.image, at));
  return { channels, height, width };
}

/** Return the pictures among the golden inputs as canvases. */
function goldenPictures(model) {
  const { image, scale, offset } = model.processing;
  const { channels, height, width } = shapeOf(model);
  const size = channels * height * width;
  return model.golden.flatMap(({ feeds }) =>
    Array.from({ length: feeds[image].shape[0] }, (_, at) => {
      const part = feeds[image].data.subarray(at * size, (at + 1) * size);
      const bytes = Uint8ClampedArray.from(part, (value) => (value - offset) / scale);
      return drawBytes(make("canvas", { width, height }), bytes, channels);
    }));
}

function drawBytes(canvas, bytes, channels) {
  const area = canvas.width * canvas.height;
  const pixels = new ImageData(canvas.width, canvas.height);
  for (let pixel = 0; pixel < area; pixel += 1) {
    for (let part = 0; part < 3; part += 1) {
      pixels.data[pixel * 4 + part] = bytes[Math.min(part, channels - 1) * area + pixel];
    }
    pixels.data[pixel * 4 + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** Halve a canvas until it is less than twice as wide as wanted: every pixel counts, as in a mean. */
function halved(canvas, width) {
  let now = canvas;
  while (now.width >= 2 * width) {
    const half = make("canvas", { width: Math.round(now.width / 2), height: Math.round(now.height / 2) });
    half.getContext("2d").drawImage(now, 0, 0, half.width, half.height);
    now = half;
  }
  return now;
}

const grey = ([red, green, blue]) => 0.299 * red + 0.587 * green + 0.114 * blue;
const percent = (share) => `${(100 * share).toFixed(share >= 0.9995 || share < 0.0005 ? 0 : 1)} %`;

/** Whether the border of a picture is light: then it is dark on white. */
function isLightAround(picture) {
  const canvas = make("canvas", { width: 16, height: 16 });
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, 16, 16);
  context.drawImage(picture, 0, 0, 16, 16);
  const { data } = context.getImageData(0, 0, 16, 16);
  const border = [...Array(256).keys()].filter((at) => at < 16 || at >= 240 || at % 16 === 0 || at % 16 === 15);
  const sum = border.reduce((total, at) => total + grey(data.subarray(4 * at, 4 * at + 3)), 0);
  return sum / border.length > 127;
}
