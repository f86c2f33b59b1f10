"""Analyze a model: what INT8 does to its outputs and its time, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from aigc_compress.api import to_onnx
from aigc_compress.artifact import Artifact, graph_tensors
from aigc_compress.bench.meter import QuickMeter
from aigc_compress.engines import check_feeds
from aigc_compress.errors import PassError, first_line
from aigc_compress.loading import load_artifact
from aigc_compress.machine import machine_scheme
from aigc_compress.passes import PASSES, Context, QuantizeConfig
from aigc_compress.passes.operators import (
    BORDERS,
    all_nodes,
    is_integer,
    with_node_names,
)
from aigc_compress.passes.quantize.blocked import Quantization
from aigc_compress.passes.quantize.explained import float_reasons
from aigc_compress.passes.saturation import Saturation, find_saturation
from aigc_compress.pipeline import run_passes
from aigc_compress.preparing import fold, lower, spell
from aigc_compress.task import Feeds, OnStep
from aigc_compress.workload import FeedOptions, Workload, make_workload

from .forms import Forms
from .noise import SETS, NoiseMeter
from .result import Analysis, LayerResult
from .sites import Site, find_sites
from .times import layer_times

__all__ = ["AnalyzeOptions", "analyze"]

PARTS = ("static", "dynamic")
NO_FORM = "ONNX Runtime found no integer form"


@dataclass(frozen=True)
class AnalyzeOptions:
    """Everything that `analyze` may be told.

    Attributes:
        feeds: calibration and evaluation feeds for a model without a task.
        seed: of calibration feeds and of what is sampled.
        threads: intra-op threads of the times.
        max_minutes: time after which nothing further is measured; None: no limit.
    """

    feeds: FeedOptions = field(default_factory=FeedOptions)
    seed: int = 0
    threads: int = 1
    max_minutes: float | None = None


def analyze(
    source: str | Path, options: AnalyzeOptions | None = None, *, on_step: OnStep | None = None
) -> Analysis:
    """Return what INT8 costs and saves layer by layer, and what differs on other processors.

    The graph is folded, lowered and spelled for integers, as `quantize` does. A model that came
    quantized is looked at for saturation alone.

    Args:
        source: a reference's name, a `.pt` or an `.onnx` file.
        options: see AnalyzeOptions.
        on_step: called with (done, total) after each measurement.

    Raises:
        UsageError: the source or an option is wrong (also its kinds InputFileError, FeedError).
        PassError: the graph does not run, or the whole of it cannot be quantized.
    """
    options = options or AnalyzeOptions()
    artifact = load_artifact(source)
    workload = make_workload(artifact, options.feeds)
    baseline = to_onnx(artifact, workload, seed=options.seed)
    timed = workload.timing_feeds(batch=1, length=1, seed=options.seed)
    check_feeds(timed, graph_tensors(baseline.payload)[0])
    context = _context(workload, options)
    found = Analysis(
        str(source),
        feeds=min(SETS, len(context.calibration)),
        notes=(*workload.calibration_notes, *workload.notes),
        threads=options.threads,
        seed=options.seed,
    )
    if _is_quantized(baseline.payload):
        return _look_at_quantized(found, baseline.payload, context)
    graph, notes = _prepared(baseline, context)
    found = replace(found, notes=(*found.notes, *notes))
    sites = find_sites(graph)
    if not sites:
        return _noting(found, _nothing(graph))
    forms = Forms(graph, sites, _config(), context)
    noise = NoiseMeter(forms, max_minutes=options.max_minutes, on_step=on_step)
    return _measured(found, forms, noise, timed)


def _context(workload: Workload, options: AnalyzeOptions) -> Context:
    meter = QuickMeter(threads=options.threads, seed=options.seed)
    calibration = workload.calibration(seed=options.seed)
    return Context(workload.check_feeds(), calibration, options.seed, meter=meter)


def _is_quantized(model: ModelProto) -> bool:
    return any(is_integer(n.op_type) or n.op_type in BORDERS for n in all_nodes(model.graph))


def _look_at_quantized(found: Analysis, model: ModelProto, context: Context) -> Analysis:
    feeds = context.calibration[:SETS]
    saturation = find_saturation(with_node_names(model), feeds, seed=context.seed)
    told = "The model came quantized: its layers were looked at for saturation alone."
    return _noting(replace(found, saturation=saturation, is_quantized=True), told)


def _prepared(baseline: Artifact, context: Context) -> tuple[ModelProto, tuple[str, ...]]:
    """Return the graph that `quantize` puts on integers, and what could not be done for it."""
    notes: list[str] = []

    def take(name: str, before: Artifact, settings: Mapping[str, Any]) -> Artifact:
        config = PASSES[name].config.model_validate(settings)
        return run_passes(before, [(name, config)], context)

    folded = fold(baseline, take)
    lowered = lower(folded, take, notes.append) or folded
    return with_node_names(spell(lowered, take, notes.append).payload), tuple(notes)


def _config() -> QuantizeConfig:
    """Return the scheme of this machine."""
    return QuantizeConfig.model_validate(machine_scheme().settings)


def _measured(found: Analysis, forms: Forms, noise: NoiseMeter, timed: Feeds) -> Analysis:
    """Return the analysis with everything measured that there is time for."""
    quantized = forms.integers(forms.everything)
    found = replace(
        found,
        whole=noise.whole(quantized),
        layers=tuple(noise.layer(site) for site in forms.sites),
        stays_float=float_reasons(quantized, Quantization(forms.config, PARTS, NO_FORM)),
    )
    found = replace(found, held=tuple(noise.without(found.worst)))
    found = replace(found, schemes=tuple(noise.schemes()))
    found = _timed(found, forms, quantized, timed)
    found = _checked(found, forms)
    found = replace(found, skipped=tuple(noise.skipped))
    if not noise.skipped:
        return found
    told = f"The time was up before everything was measured; {len(noise.skipped)} left out."
    return _noting(found, told)


def _timed(found: Analysis, forms: Forms, quantized: ModelProto, feeds: Feeds) -> Analysis:
    """Return the analysis with the milliseconds of its layers, or with why there are none."""
    try:
        times = layer_times(forms, quantized, feeds)
    except PassError as error:
        return _noting(found, f"Layers were not timed: {first_line(error)}")
    layers = tuple(
        replace(each, float_ms=times[each.site][0], integer_ms=times[each.site][1])
        for each in found.layers
    )
    return replace(found, layers=layers)


def _checked(found: Analysis, forms: Forms) -> Analysis:
    """Return the analysis with what would saturate if the weights had all 8 bits.

    They are looked at in the form that x86 wants, whatever this machine is.
    """
    full = forms.with_settings(activations="uint8", weights="int8", reduce_range=False)
    try:
        quantized = full.integers(full.everything)
        feeds = forms.context.calibration[:SETS]
        saturation = find_saturation(quantized, feeds, seed=forms.context.seed)
    except PassError as error:
        return _noting(found, f"Layers were not looked at for saturation: {first_line(error)}")
    named = tuple(_renamed(each, found.layers) for each in saturation)
    layers = tuple(replace(each, saturation=_worst_of(each.site, named)) for each in found.layers)
    return replace(found, layers=layers, saturation=named)


def _renamed(finding: Saturation, layers: Sequence[LayerResult]) -> Saturation:
    """Return the finding under the name that the layer has in the graph of floats.

    The tools write operators of their own, but keep the names of nodes or outputs.
    """
    for each in layers:
        outputs, names = {*each.site.outputs}, {each.site.name, *each.site.nodes}
        if finding.output in outputs or finding.name.removesuffix("_quant") in names:
            return replace(finding, name=each.site.name)
    return finding


def _worst_of(site: Site, found: Sequence[Saturation]) -> Saturation | None:
    """Return the worst finding about a layer; `found` is sorted."""
    return next((each for each in found if each.name == site.name), None)


def _nothing(graph: ModelProto) -> str:
    kinds = sorted({node.op_type for node in all_nodes(graph.graph)})
    return (
        "There is nothing to quantize: INT8 covers Conv, Gemm, MatMul, LSTM and GRU with constant"
        f" weights, and the graph holds {', '.join(kinds[:12])}."
    )


def _noting(found: Analysis, note: str) -> Analysis:
    return replace(found, notes=(*found.notes, note))
