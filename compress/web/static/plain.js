/** A bundle of no known kind: what goes in and out, and its golden vectors again. */

import { announce, caption, columns, make, reason, timeText } from "./dom.js";

/** Show what the model is, and let its golden vectors run. */
export function showPlain(root, models) {
  const results = new Map(models.map((model) => [model, make("ul", { class: "results" })]));
  const run = async () => {
    for (const [model, list] of results) list.replaceChildren(...(await rows(model)));
    announce("The golden vectors ran.");
  };
  root.append(
    make("section", { "aria-labelledby": "ports" },
      make("h2", { id: "ports", text: "What goes in and out" }),
      make("p", { class: "told", text: "Nobody said what this model is for, so that this page can feed it what was recorded, and nothing else." }),
      make("div", { class: "columns" }, table("Inputs", models[0].inputs), table("Outputs", models[0].outputs))),
    make("section", { "aria-labelledby": "golden" },
      make("div", { class: "heading" },
        make("h2", { id: "golden", text: "Golden vectors" }),
        make("button", { type: "button", class: "main", text: "Run them", on: { click: run } })),
      columns(models, (model) => [caption(model, ""), results.get(model)])),
  );
  run();
}

async function rows(model) {
  const made = [];
  for (const [at, { feeds }] of model.golden.entries()) {
    try {
      const { outputs, ms } = await model.run(feeds);
      const shapes = Object.entries(outputs).map(([name, { shape }]) => `${name} (${shape.join(" × ")})`);
      made.push(make("li", { text: `Set ${at + 1}: ${shapes.join(", ")} in ${timeText(ms)}` }));
    } catch (error) {
      made.push(make("li", { class: "problem", text: `Set ${at + 1} failed: ${reason(error)}` }));
    }
  }
  return made;
}

function table(title, ports) {
  const items = ports.map(({ name, dtype, shape, meaning }) =>
    make("li", {}, make("b", { text: name }), make("code", { text: `${dtype} (${shape.join(", ")})` }), make("span", { text: meaning })));
  return make("div", { class: "column" }, make("h3", { text: title }), make("ul", { class: "ports" }, ...items));
}
