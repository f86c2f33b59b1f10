/** Kind `images`: every model draws from the same latents. */

import { announce, caption, columns, field, latest, make, nextFrame, slider, timeText } from "./dom.js";
import { between, freshSeed, moved, normal } from "./random.js";
import { Clock } from "./timing.js";

const COUNT = 24;
const DIRECTIONS = 4;
const REACH = 9; // of a slider; a latent of 100 numbers lies some 10 from the origin
const CYCLE_MS = 5000;
const WARMUP = 3;
const isNarrow = matchMedia("(max-width: 720px)");
const isCalm = matchMedia("(prefers-reduced-motion: reduce)");

/** Show the demo of a generator. */
export function showImages(root, models) {
  const shared = { chosen: 0, latents: [], onChange: () => {} };
  root.append(gallery(models, shared), bending(models, shared), morphing(models));
}

/** Many images of one seed. */
function gallery(models, shared) {
  const grids = new Map(models.map((model) => [model, new Grid(model, (at) => choose(at))]));
  const seed = field("Seed", { type: "number", min: 0, step: 1, value: 7, on: { input: () => draw() } });
  const fresh = make("button", { type: "button", class: "main", text: "New latents", on: { click: () => {
    seed.input.value = freshSeed();
    draw();
  } } });
  const draw = latest(async () => {
    const own = Number(seed.input.value) || 0;
    shared.latents = Array.from({ length: COUNT }, (_, at) => (size) => normal(size, own * COUNT + at));
    for (const [model, grid] of grids) {
      const { images, ms } = await generate(model, shared.latents.map((make) => make(sizeOf(model))));
      grid.show(images, ms);
      await nextFrame();
    }
    shared.onChange();
    announce(`${COUNT} images drawn from seed ${own} by each model.`);
  });
  const choose = (at) => {
    shared.chosen = at;
    for (const grid of grids.values()) grid.mark(at);
    shared.onChange();
  };
  shared.choose = choose;
  isNarrow.addEventListener("change", () => { for (const grid of grids.values()) grid.paint(); });
  draw();
  return make("section", { "aria-labelledby": "gallery" },
    make("div", { class: "heading" },
      make("h2", { id: "gallery", text: models.length > 1 ? "The same latents" : "From random latents" }),
      make("div", { class: "tools" }, seed.box, fresh)),
    columns(models, (model) => grids.get(model).parts));
}

/** One image of the gallery, moved along a few directions of the latent space. */
function bending(models, shared) {
  const stages = new Map(models.map((model) => [model, new Stage(model)]));
  const which = slider("Image of the grid", { min: 1, max: COUNT, step: 1, value: 1, onInput: () => shared.choose(which.value - 1) });
  const sliders = Array.from({ length: DIRECTIONS }, (_, at) =>
    slider(`Direction ${at + 1}`, { min: -REACH, max: REACH, step: 0.1, value: 0, tell: signed, onInput: () => draw() }));
  const draw = latest(async () => {
    if (!shared.latents.length) return;
    for (const [model, stage] of stages) {
      const size = sizeOf(model);
      const steps = sliders.map((each, at) => ({ direction: normal(size, 1000 + at), by: each.value }));
      await stage.draw(moved(shared.latents[shared.chosen](size), steps));
    }
  });
  shared.onChange = () => {
    which.set(shared.chosen + 1);
    draw();
  };
  const reset = make("button", { type: "button", text: "Reset", on: { click: () => {
    for (const each of sliders) each.set(0);
    draw();
  } } });
  return make("section", { "aria-labelledby": "bending" },
    make("h2", { id: "bending", text: "Bend one image" }),
    make("div", { class: "bench" },
      make("div", { class: "panel" }, which.box, ...sliders.map((each) => each.box), reset),
      columns(models, (model) => stages.get(model).parts)));
}

/** The way from one seed to another, played forth and back. */
function morphing(models) {
  const stages = new Map(models.map((model) => [model, new Stage(model)]));
  const seeds = [3, 11].map((value, at) =>
    field(at ? "To seed" : "From seed", { type: "number", min: 0, step: 1, value, on: { input: () => draw() } }));
  const place = slider("Position", { min: 0, max: 1, step: 0.005, value: 0, tell: percent, onInput: () => {
    pause();
    draw();
  } });
  const button = make("button", { type: "button", class: "main", text: "Play", on: { click: () => (isPlaying ? pause() : play()) } });
  let isPlaying = false;
  let isSeen = false;
  const draw = latest(async () => {
    const [from, to] = seeds.map((each) => Number(each.input.value) || 0);
    for (const [model, stage] of stages) {
      const size = sizeOf(model);
      await stage.draw(between(normal(size, from), normal(size, to), eased(place.value)));
    }
  });
  const pause = () => {
    isPlaying = false;
    button.textContent = "Play";
  };
  const play = async () => {
    isPlaying = true;
    button.textContent = "Pause";
    let [before, phase] = [performance.now(), place.value];
    while (isPlaying) {
      await nextFrame();
      const now = performance.now();
      if (isSeen && !document.hidden) phase += Math.min(100, now - before) / CYCLE_MS;
      before = now;
      if (!isPlaying) break;
      place.set(1 - Math.abs(1 - (phase % 2)));
      if (isSeen) await draw();
    }
  };
  const section = make("section", { "aria-labelledby": "morphing" },
    make("h2", { id: "morphing", text: "From one seed to another" }),
    make("div", { class: "bench" },
      make("div", { class: "panel" }, make("div", { class: "pair" }, ...seeds.map((each) => each.box)), place.box, button),
      columns(models, (model) => stages.get(model).parts)));
  new IntersectionObserver(([entry]) => {
    const begins = !isSeen && entry.isIntersecting;
    isSeen = entry.isIntersecting;
    if (begins && !isCalm.matches && !section.dataset.begun) play();
    if (begins) section.dataset.begun = "yes";
  }, { threshold: 0.3 }).observe(section);
  draw();
  return section;
}

/** The canvas on which a model's many images lie. */
class Grid {
  constructor(model, onChoose) {
    this.images = [];
    this.marked = 0;
    this.remark = make("span", { class: "remark" });
    this.canvas = make("canvas", { class: "grid", role: "img", "aria-label": `${COUNT} images by ${model.name}`, on: {
      click: (event) => onChoose(this.placeOf(event)),
    } });
    this.parts = [caption(model, this.remark), this.canvas];
  }

  show(images, ms) {
    this.images = images;
    this.remark.textContent = `${images.length} images in ${timeText(ms)}`;
    this.paint();
  }

  mark(at) {
    this.marked = at;
    this.paint();
  }

  get across() {
    return isNarrow.matches ? 4 : 8;
  }

  paint() {
    const [first] = this.images;
    if (!first) return;
    const [zoom, gap] = [Math.max(1, Math.ceil(112 / first.width)), 6];
    const [width, height] = [first.width * zoom + gap, first.height * zoom + gap];
    this.canvas.width = width * this.across - gap + 8;
    this.canvas.height = height * Math.ceil(this.images.length / this.across) - gap + 8;
    const context = this.canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    this.images.forEach((image, at) => {
      const [x, y] = [4 + (at % this.across) * width, 4 + Math.floor(at / this.across) * height];
      context.drawImage(image, x, y, width - gap, height - gap);
      if (at === this.marked) outline(context, x, y, width - gap, height - gap);
    });
  }

  placeOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const rows = Math.ceil(this.images.length / this.across);
    const x = Math.floor(((event.clientX - box.left) / box.width) * this.across);
    const y = Math.floor(((event.clientY - box.top) / box.height) * rows);
    return Math.min(this.images.length - 1, Math.max(0, y * this.across + x));
  }
}

/** The canvas on which one large image of a model lies. */
class Stage {
  constructor(model) {
    this.model = model;
    this.remark = make("span", { class: "remark" });
    this.canvas = make("canvas", { class: "stage", role: "img", "aria-label": `An image by ${model.name}` });
    this.parts = [caption(model, this.remark), this.canvas];
    this.clock = new Clock(WARMUP);
  }

  /** Draw one latent; the first calls with a batch of one are slower and not counted. */
  async draw(latent) {
    do {
      const { images, ms } = await generate(this.model, [latent]);
      this.clock.add(ms);
      this.show(images[0]);
    } while (!this.clock.isWarm);
  }

  show(image) {
    const zoom = Math.max(1, Math.ceil(560 / image.width));
    if (this.canvas.width !== image.width * zoom) {
      this.canvas.width = image.width * zoom;
      this.canvas.height = image.height * zoom;
    }
    const context = this.canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
    this.remark.textContent = this.clock.text;
  }
}

function outline(context, x, y, width, height) {
  context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  context.lineWidth = 5;
  context.strokeRect(x - 1, y - 1, width + 2, height + 2);
}

const sizeOf = (model) => model.processing.size;

/** Draw latents in one call; return canvases and milliseconds. */
async function generate(model, latents) {
  const { latent, image, range } = model.processing;
  const data = new Float32Array(latents.length * sizeOf(model));
  latents.forEach((each, at) => data.set(each, at * sizeOf(model)));
  const { outputs, ms } = await model.run({ [latent]: { data, shape: [latents.length, sizeOf(model)] } });
  const images = latents.map((_, at) => picture(outputs[image], at, range));
  return { images, ms };
}

/** Return one image of a (batch, channels, height, width) array as a canvas. */
function picture({ data, shape }, at, [low, high]) {
  const [, channels, height, width] = shape;
  const area = height * width;
  const pixels = new ImageData(width, height);
  for (let pixel = 0; pixel < area; pixel += 1) {
    for (let part = 0; part < 3; part += 1) {
      const value = data[(at * channels + Math.min(part, channels - 1)) * area + pixel];
      pixels.data[pixel * 4 + part] = (255 * (value - low)) / (high - low);
    }
    pixels.data[pixel * 4 + 3] = 255;
  }
  const canvas = make("canvas", { width, height });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(1);
const percent = (value) => `${Math.round(100 * value)} %`;
const eased = (share) => share * share * (3 - 2 * share);
