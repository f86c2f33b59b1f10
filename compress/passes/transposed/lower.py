"""Write ConvTranspose layers as Convs, which have integer kernels, without changing the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from numpy.typing import NDArray
from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError, first_line
from aigc_compress.passes.base import Context
from aigc_compress.passes.graphs import drop_unread
from aigc_compress.passes.operators import all_nodes
from aigc_compress.passes.probe import Probe

from .choice import Choice, Setting, choose_by_time, choose_by_work
from .forms import SPELLINGS, EngineName, FormName, Precision, write_form
from .found import find_layers, is_transposed
from .layer import Layer

__all__ = ["LowerConfig", "LowerPass"]

Outputs = list[dict[str, NDArray[Any]]]
KEPT = "ConvTranspose"


class LowerConfig(BaseModel):
    """Settings of the lowering."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["auto"] | FormName = Field(
        default="auto",
        description="auto: timed layer by layer; a name: that form wherever it applies",
    )
    precision: Precision = Field(
        default="float", description="what the layers are going to run in, and are timed in"
    )
    engine: EngineName = Field(
        default="ort", description="what the layers are going to run on, and are timed on"
    )
    least_sqnr_db: float = Field(
        default=80.0, gt=0, description="agreement with the graph before, in dB"
    )


class LowerPass:
    """Replace every ConvTranspose of the main graph by the form that suits it, one by one.

    `auto` asks `context.meter` once for every kind of layer; without a meter the form with the
    fewest multiplications is taken. A name is taken wherever it applies, and the form with the
    fewest multiplications elsewhere. A replacement stays only if the graph still computes the same.

    The step's numbers tell by the name of each layer's output: its `form` (ConvTranspose where it
    was left), the `ratios` of all forms that were timed against the float ConvTranspose, `refused`
    with the reasons why forms were not, and `reason` why the layer was left alone.
    """

    name = "lower"
    config = LowerConfig

    def run(self, artifact: Artifact, config: LowerConfig, context: Context) -> Artifact:
        """Return the graph with its ConvTransposes replaced; at worst the graph as it came.

        Raises:
            PassError: ONNX Runtime does not run the graph as it came.
        """
        model: ModelProto = artifact.payload
        layers, reasons = find_layers(model)
        told = {name: {"form": KEPT, "reason": reason} for name, reason in reasons.items()}
        if layers:
            choices = _choose(model, layers, config, context)
            model, numbers = _replace(model, layers, choices, config, context)
            told |= numbers
        step = Step(self.name, config.model_dump(), None, {"layers": told})
        return artifact.then(model, step, stage="onnx")


def _choose(
    model: ModelProto, layers: Mapping[str, Layer], config: LowerConfig, context: Context
) -> dict[str, Choice]:
    """Return the choice for every layer; layers of one kind are timed once."""
    samples = _samples(model, list(layers), context)
    setting = Setting(_opset(model), config.precision, config.engine)
    wanted = None if config.form == "auto" else config.form
    timed: dict[Any, Choice] = {}
    choices = {}
    for done, (name, layer) in enumerate(layers.items()):
        sample = samples[name]
        kind = (layer.geometry, layer.sizes, sample.shape, layer.bias is None)
        if context.meter is None or wanted:
            choices[name] = choose_by_work(layer, sample.shape[2:], setting, wanted=wanted)
        else:
            if kind not in timed:
                timed[kind] = choose_by_time(layer, sample, setting, context.meter)
            choices[name] = timed[kind]
        context.on_step(done + 1, len(layers))
    return choices


def _samples(model: ModelProto, names: list[str], context: Context) -> dict[str, NDArray[Any]]:
    """Return the inputs of the layers that make `names`, on the first set of check feeds."""
    feeds = context.check_feeds[0]
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.output}
    inner = {sources[name] for name in names} - feeds.keys()
    seen = {**feeds, **dict(Probe(model, sorted(inner)).run(feeds))}
    return {name: seen[sources[name]] for name in names}


def _replace(
    model: ModelProto,
    layers: Mapping[str, Layer],
    choices: Mapping[str, Choice],
    config: LowerConfig,
    context: Context,
) -> tuple[ModelProto, dict[str, dict[str, Any]]]:
    """Replace layer by layer, each only if the graph still agrees with the one before."""
    reference = _outputs(model, context)
    told: dict[str, dict[str, Any]] = {}
    for name, choice in choices.items():
        told[name] = {
            "form": choice.form or KEPT,
            "ratios": dict(choice.ratios),
            "refused": dict(choice.refused),
        }
        if choice.form is None:
            told[name]["reason"] = choice.reason
            continue
        candidate = _with_form(model, name, layers[name], choice.form, config)
        fault = _fault(candidate, reference, config, context)
        if fault:
            told[name] |= {"form": KEPT, "reason": f"as {choice.form} {fault}"}
        else:
            model = candidate
    return model, told


def _fault(
    candidate: ModelProto, reference: Outputs, config: LowerConfig, context: Context
) -> str | None:
    """Return what is wrong with a candidate, or None."""
    try:
        agreement = lowest_agreement_db(reference, _outputs(candidate, context))
    except PassError as error:
        return f"it does not run: {first_line(error)}"
    if agreement >= config.least_sqnr_db:
        return None
    return f"the outputs agree to {agreement:.0f} dB only"


def _with_form(
    model: ModelProto, name: str, layer: Layer, form: FormName, config: LowerConfig
) -> ModelProto:
    """Return a copy of the model in which `form` stands for the ConvTranspose that makes `name`."""
    changed = ModelProto()
    changed.CopyFrom(model)
    nodes = list(changed.graph.node)
    index = next(i for i, n in enumerate(nodes) if is_transposed(n) and n.output[0] == name)
    draft = write_form(
        form,
        layer,
        prefix=_free_prefix(model, f"{name}_{form}"),
        source=nodes[index].input[0],
        target=name,
        opset=_opset(model),
        precision=config.precision,
        spelling=SPELLINGS[config.engine],
    )
    freed = set(filter(None, nodes[index].input[1:]))
    del changed.graph.node[:]
    changed.graph.node.extend([*nodes[:index], *draft.nodes, *nodes[index + 1 :]])
    changed.graph.initializer.extend(draft.constants)
    drop_unread(changed, freed)
    return changed


def _free_prefix(model: ModelProto, wanted: str) -> str:
    """Return a beginning that no name of the model has."""
    names = {name for node in all_nodes(model.graph) for name in (*node.input, *node.output)}
    names |= {node.name for node in all_nodes(model.graph)}
    names |= {each.name for each in model.graph.initializer}
    while any(name.startswith(f"{wanted}_") for name in names):
        wanted += "_"
    return wanted


def _opset(model: ModelProto) -> int:
    return next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 1)


def _outputs(model: ModelProto, context: Context) -> Outputs:
    session = OrtSession(Artifact("onnx", model), threads=1)
    return [session.run(feeds) for feeds in context.check_feeds]
