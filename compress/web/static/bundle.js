/** The bundle: its manifest, golden vectors and models, checked before they are used. */

import * as ort from "./vendor/ort.js";

const HERE = new URL(".", import.meta.url);
const EQUAL_DB = 300; // what stands for outputs that are the same in every bit
// Stored arrays are little-endian, as are all machines that browsers run on.
const ARRAYS = {
  bool: Uint8Array, float16: Uint16Array, float32: Float32Array, float64: Float64Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
};

ort.env.logLevel = "error";
ort.env.wasm.numThreads = 1; // more would need headers that not every server can send
ort.env.wasm.wasmPaths = {
  mjs: new URL("vendor/ort-loader.js", HERE).href,
  wasm: new URL("vendor/ort.wasm", HERE).href,
};

/** Fetch `site.json`: {bundle, files, runtime}. */
export async function openSite() {
  const response = await fetch(new URL("site.json", HERE), { cache: "no-cache" });
  if (!response.ok) throw new Error(`site.json cannot be loaded (${response.status}).`);
  return response.json();
}

/** Whether this browser lets a page compute SHA-256: on https and on localhost. */
export const canCheck = () => Boolean(globalThis.crypto?.subtle);

/** One form of the model. */
export class Model {
  constructor(told, site) {
    const { bundle } = site;
    this.site = site;
    this.told = told;
    this.name = told.name;
    this.place = bundle.variants.indexOf(told);
    this.inputs = told.inputs ?? bundle.inputs;
    this.outputs = told.outputs ?? bundle.outputs;
    this.processing = told.processing ?? bundle.processing;
    this.precision = told.precision === "int8" ? "INT8" : "FP32";
    this.golden = [];
  }

  /** Fetch and check the graph and the golden vectors, and make it ready to run. */
  async load() {
    const content = await fetchChecked(this.told.model, this.site.files);
    await this.loadGolden();
    await inTurn(async () => {
      this.session = await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
    });
  }

  async loadGolden() {
    for (const each of this.site.bundle.golden) {
      const inputs = each.own_inputs?.[this.name] ?? each.inputs;
      this.golden.push({
        feeds: await this.arrays(this.inputs, inputs),
        outputs: await this.arrays(this.outputs, each.outputs[this.name]),
      });
    }
  }

  async arrays(ports, stored) {
    const read = ports.map(async ({ name, dtype }, at) => {
      const { member, shape } = stored[at];
      return [name, { data: new ARRAYS[dtype](await fetchChecked(member, this.site.files)), shape }];
    });
    return Object.fromEntries(await Promise.all(read));
  }

  /** Run: feeds and outputs are {name: {data, shape}}; `ms` is what the call took. */
  async run(feeds) {
    const tensors = this.tensors(feeds);
    return inTurn(async () => {
      const start = performance.now();
      const given = await this.session.run(tensors);
      const ms = performance.now() - start;
      const outputs = Object.entries(given).map(([name, { data, dims }]) => [name, { data, shape: dims }]);
      return { outputs: Object.fromEntries(outputs), ms };
    });
  }

  /** Run many times in a row and return the milliseconds of one call. */
  async time(feeds, calls) {
    const tensors = this.tensors(feeds);
    return inTurn(async () => {
      const start = performance.now();
      for (let call = 0; call < calls; call += 1) await this.session.run(tensors);
      return (performance.now() - start) / calls;
    });
  }

  tensors(feeds) {
    const made = this.inputs.map(({ name, dtype }) => [name, new ort.Tensor(dtype, feeds[name].data, feeds[name].shape)]);
    return Object.fromEntries(made);
  }

  /** Return the lowest agreement in dB with the recorded outputs; 300: the same in every bit. */
  async verify() {
    let lowest = EQUAL_DB;
    for (const { feeds, outputs } of this.golden) {
      const found = (await this.run(feeds)).outputs;
      for (const { name } of this.outputs) lowest = Math.min(lowest, agreement(outputs[name], found[name]));
    }
    return { db: lowest, isRight: lowest >= this.told.least_db, isEqual: lowest === EQUAL_DB };
  }

  /** Return the length of an axis of an input or output, by the golden vectors if it is free. */
  axis(name, at) {
    const port = [...this.inputs, ...this.outputs].find((each) => each.name === name);
    const size = port.shape[at];
    if (typeof size === "number") return size;
    const { feeds, outputs } = this.golden[0];
    return (feeds[name] ?? outputs[name]).shape[at];
  }
}

/** Return zeros for a shape in which an axis with a name counts one. */
export function zeros(shape) {
  const sizes = shape.map((axis) => (typeof axis === "number" ? axis : 1));
  return { data: new Float32Array(sizes.reduce((a, b) => a * b, 1)), shape: sizes };
}

/** 10 log10 of signal over noise power; -300 where shapes, or what is no finite number, differ. */
function agreement(recorded, found) {
  if (String(recorded.shape) !== String(found.shape)) return -EQUAL_DB;
  let signal = 0;
  let noise = 0;
  for (let at = 0; at < recorded.data.length; at += 1) {
    const [wanted, got] = [Number(recorded.data[at]), Number(found.data[at])];
    if (Number.isFinite(wanted) !== Number.isFinite(got)) return -EQUAL_DB;
    if (!Number.isFinite(wanted)) continue;
    signal += wanted * wanted;
    noise += (wanted - got) ** 2;
  }
  if (noise === 0) return EQUAL_DB;
  return signal ? 10 * Math.log10(signal / noise) : -EQUAL_DB;
}

async function fetchChecked(name, files) {
  const response = await fetch(new URL(name, HERE), { cache: "no-cache" });
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status}).`);
  const content = await response.arrayBuffer();
  if (canCheck() && (await sha256(content)) !== files[name]?.sha256) {
    throw new Error(`${name} is damaged: it is not what its SHA-256 says.`);
  }
  return content;
}

async function sha256(content) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

let last = Promise.resolve();

/** Run one piece of work at a time, so that no model's time holds another's. */
function inTurn(work) {
  const mine = last.then(work);
  last = mine.catch(() => {});
  return mine;
}
