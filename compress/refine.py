"""Better splits of a graph between integers and floats, from measured times and measured harm.

A whole-graph scheme quantizes whatever has an integer kernel. Some of it is slower so, and a few
nodes often do most of the harm. Both are measured: the time of every node on floats and on
integers, and the noise that it brings alone. The cheapest split (see `passes.partition`) then
charges noise at a price; of the splits along rising prices, the fastest whose predicted noise meets
the target is taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import cast

import numpy as np
from onnx import ModelProto

from .artifact import Artifact
from .closeness import lowest_agreement_db
from .engines.ort import OrtSession
from .errors import PassError
from .meter import Meter, NodeTime
from .passes import Context, QuantizeConfig
from .passes.operators import BORDERS, with_node_names
from .passes.partition import Border, Operator, Split, cheapest_split
from .passes.quantize.static import integer_region, quantize_static
from .task import Feeds

__all__ = ["Sensitivity", "measure_sensitivity", "node_operators", "splits", "with_only"]

SUFFIXES = ("_QuantizeLinear_Input", "_QuantizeLinear_Output", "_DequantizeLinear_Output")
PRICES = tuple(10.0**power for power in np.arange(-4, 4.25, 0.25))
FEW = 4  # sets of feeds that harm is measured on
KEPT_EVERY = 10


@dataclass(frozen=True)
class Sensitivity:
    """The noise that every node brings when it alone is quantized, as a share of signal power.

    Attributes:
        noise: by name of the node, 10^(-SQNR / 10) of the worst output.
        skipped: nodes for which there was no time; they count as the worst one measured.
    """

    noise: Mapping[str, float]
    skipped: tuple[str, ...] = ()


def measure_sensitivity(
    graph: ModelProto,
    config: QuantizeConfig,
    context: Context,
    *,
    most_seconds: float,
    known: Mapping[str, float] | None = None,
    keep: Callable[[Mapping[str, float]], None] = lambda _noise: None,
) -> Sensitivity:
    """Quantize node after node alone, and measure what that does to the outputs.

    Args:
        graph: the folded FP32 graph.
        config: the scheme; its mode and what it keeps float play no role.
        context: calibration feeds; the first few are what harm is measured on.
        most_seconds: time after which the rest is skipped.
        known: noise of nodes that were measured before.
        keep: called with all noise so far, now and then.
    """
    named = with_node_names(graph)
    feeds = context.calibration[:FEW]
    wanted = _outputs(named, feeds)
    region = integer_region(named)
    noise = {name: (known or {})[name] for name in region if name in (known or {})}
    deadline = time.monotonic() + most_seconds
    for name in region:
        if name in noise:
            continue
        if time.monotonic() > deadline:
            break
        noise[name] = _noise_of(named, with_only(config, [name]), context, feeds, wanted)
        context.on_step(len(noise), len(region))
        if len(noise) % KEPT_EVERY == 0 or len(noise) == len(region):
            keep(noise)
    skipped = tuple(name for name in region if name not in noise)
    worst = max(noise.values(), default=math.inf)
    return Sensitivity({**noise, **dict.fromkeys(skipped, worst)}, skipped)


def with_only(config: QuantizeConfig, integer: Iterable[str]) -> QuantizeConfig:
    """Return a scheme whose static part makes these nodes integer and no others."""
    return config.model_copy(update={"only": tuple(sorted(integer))})


def _noise_of(
    graph: ModelProto,
    config: QuantizeConfig,
    context: Context,
    feeds: Sequence[Feeds],
    wanted: list[dict[str, np.ndarray]],
) -> float:
    try:
        quantized, _ = quantize_static(graph, config, replace(context, on_step=lambda *_: None))
        agreement = lowest_agreement_db(wanted, _outputs(quantized, feeds))
    except PassError:  # alone it cannot be integer: the tool or the engine refuses it
        return math.inf
    return float(10 ** (-agreement / 10))


def _outputs(model: ModelProto, feeds: Sequence[Feeds]) -> list[dict[str, np.ndarray]]:
    session = OrtSession(Artifact("onnx", model), threads=1)
    return [session.run(each) for each in feeds]


def node_operators(
    graph: ModelProto, quantized: ModelProto, meter: Meter, feeds: Feeds
) -> tuple[list[Operator], dict[str, Border]]:
    """Return the nodes of a graph with their times in both forms, and what borders cost.

    Args:
        graph: the folded FP32 graph, its nodes named.
        quantized: the same with everything on integers that can be.
        meter: what profiles.
        feeds: of the timed call.
    """
    floats = meter.profile(Artifact("onnx", graph), feeds)
    integers = meter.profile(Artifact("onnx", quantized), feeds)
    region = set(integer_region(graph))
    constants = {each.name for each in graph.graph.initializer}
    computed = {_plain(name): each.ms for name, each in integers.items() if each.op not in BORDERS}
    operators = []
    for node in graph.graph.node:
        outputs = tuple(name for name in node.output if name)
        inputs = tuple(name for name in node.input if name and name not in constants)
        float_ms = sum(floats[name].ms for name in outputs if name in floats)
        integer_ms = sum(computed.get(name, 0.0) for name in outputs)
        can_be_integer = node.name in region
        operators.append(
            Operator(
                node.name, inputs, outputs, float_ms, integer_ms if can_be_integer else math.inf
            )
        )
    return operators, _borders(floats, integers)


def _plain(name: str) -> str:
    """Return the name of a tensor without what the quantization tool put behind it."""
    for suffix in SUFFIXES:
        name = name.split(suffix)[0]
    return name


def _borders(floats: Mapping[str, NodeTime], integers: Mapping[str, NodeTime]) -> dict[str, Border]:
    """Return border costs by tensor: milliseconds per element of those seen, times elements."""
    rates = {}
    for op in BORDERS:
        seen = [
            each.ms / each.elements for each in integers.values() if each.op == op and each.elements
        ]
        rates[op] = median(seen) if seen else 0.0
    sizes = {_plain(name): each.elements for name, each in integers.items()}
    sizes |= {name: each.elements for name, each in floats.items()}
    return {
        name: Border(rates["QuantizeLinear"] * size, rates["DequantizeLinear"] * size)
        for name, size in sizes.items()
    }


def splits(
    operators: Sequence[Operator],
    borders: Mapping[str, Border],
    outputs: Sequence[str],
    sensitivity: Sensitivity | None,
    *,
    targets_db: Sequence[float],
) -> list[tuple[float | None, Split]]:
    """Return the fastest split of all, then by target the fastest predicted to meet it.

    A target that a split before it meets already has none of its own.

    Noise powers of nodes add up (they are taken as independent).

    Args:
        operators: nodes with their times.
        borders: what crossing costs, by tensor.
        outputs: names of the graph's outputs.
        sensitivity: noise by node; None asks for speed alone.
        targets_db: SQNR that predictions must reach, rising.
    """
    found: list[tuple[float | None, Split]] = [(None, cheapest_split(operators, borders, outputs))]
    for target in targets_db if sensitivity else ():
        split = _within(operators, borders, outputs, cast(Sensitivity, sensitivity), target)
        if split is not None and all(split.integer != known.integer for _, known in found):
            found.append((target, split))
    return found


def _within(
    operators: Sequence[Operator],
    borders: Mapping[str, Border],
    outputs: Sequence[str],
    sensitivity: Sensitivity,
    target_db: float,
) -> Split | None:
    """Return the split at the lowest price of noise whose predicted noise meets the target."""
    whole_ms = sum(each.float_ms for each in operators)
    allowed = 10 ** (-target_db / 10)
    for price in PRICES:
        charged = [_charged(each, sensitivity, price * whole_ms / allowed) for each in operators]
        split = cheapest_split(charged, borders, outputs)
        if sum(sensitivity.noise.get(name, 0.0) for name in split.integer) <= allowed:
            return split
    return None


def _charged(operator: Operator, sensitivity: Sensitivity, price: float) -> Operator:
    noise = sensitivity.noise.get(operator.name, 0.0)
    return replace(operator, integer_ms=operator.integer_ms + price * noise)
