"""Better splits of a graph between integers and floats, from measured times and measured harm.

A whole-graph scheme quantizes whatever has an integer kernel. Some of it is slower so, and a few
roundings often do most of the harm. Both are measured: the time of every node on floats and on
integers, and the noise that every rounded activation and every node's rounded weights bring alone.
The cheapest split (see `passes.partition`) then charges noise at a price, and a rising price gives
a row of splits, each with the noise that fake quantization finds for it as a whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from .artifact import Artifact
from .closeness import agreement_db as closeness_db
from .engines.ort import OrtSession
from .meter import Meter, NodeTime
from .passes import Context, QuantizeConfig
from .passes.fake_quant import FakeQuant
from .passes.operators import BORDERS
from .passes.partition import Border, Operator, Split, cheapest_split
from .passes.quantize.static import ANCHORS, integer_region
from .task import Feeds

__all__ = ["Point", "Sensitivity", "front", "measure_sensitivity", "node_operators", "with_only"]

SUFFIXES = ("_QuantizeLinear_Input", "_QuantizeLinear_Output", "_DequantizeLinear_Output")
# Of noise as large as the signal, in times of the whole graph.
PRICES = tuple(10.0**power for power in np.arange(-2, 9, 0.125))
STEP_DB = 0.3  # splits closer than this are not told apart
# What ONNX Runtime runs together with the Conv or product before it.
FUSED = ("Add", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Tanh")
FEW = 8  # sets of feeds that harm is measured on, spread over the calibration feeds
KEPT_EVERY = 10

Simulate = Callable[[Iterable[str]], float]
Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Sensitivity:
    """The noise that every rounding brings alone, as a share of signal power, and splits whole.

    Attributes:
        tensors: 10^(-SQNR / 10) of the worst output, by name of the one activation rounded.
        weights: the same by name of the one node whose constants are rounded.
        simulate: returns the SQNR of the worst output, in dB, with these nodes on integers.
        skipped: what there was no time for; it counts as the worst of its kind measured.
    """

    tensors: Mapping[str, float]
    weights: Mapping[str, float]
    simulate: Simulate = field(repr=False)
    skipped: tuple[str, ...] = ()


def measure_sensitivity(
    floats: ModelProto,
    quantized: ModelProto,
    context: Context,
    *,
    most_seconds: float,
    known: Mapping[str, float] | None = None,
    keep: Callable[[Mapping[str, float]], None] = lambda _noise: None,
) -> Sensitivity:
    """Round one activation after another, then one node's weights after another.

    Args:
        floats: the folded graph, its nodes named.
        quantized: the same with everything on integers that can be, as Q/DQ.
        context: calibration feeds; a few, spread over them, are what harm is measured on.
        most_seconds: time after which the rest is skipped.
        known: noise that was measured before, as `keep` was given it.
        keep: called with all noise so far, now and then.

    Raises:
        PassError: ONNX Runtime does not run the graph with its roundings as switches.
    """
    calibration = context.calibration
    feeds = calibration[:: max(1, len(calibration) // FEW)][:FEW]
    fake = FakeQuant(floats, quantized)
    session = OrtSession(Artifact("onnx", floats), threads=1)
    wanted = [session.run(each) for each in feeds]

    def agreement_db(tensors: Iterable[str], weights: Iterable[str]) -> float:
        chosen = {"tensors": [*tensors], "weights": [*weights]}
        return _agreement_db(wanted, [fake.run(each, **chosen) for each in feeds])

    roundings: list[tuple[str, tuple[list[str], list[str]]]] = [
        *((f"tensor {name}", ([name], [])) for name in fake.tensors),
        *((f"weights of {name}", ([], [name])) for name in fake.weights),
    ]
    noise = {key: known[key] for key, _ in roundings if key in known} if known else {}
    deadline = time.monotonic() + most_seconds
    for key, chosen in roundings:
        if key not in noise and time.monotonic() <= deadline:
            noise[key] = float(10 ** (-agreement_db(*chosen) / 10))
            context.on_step(len(noise), len(roundings))
            if len(noise) % KEPT_EVERY == 0 or len(noise) == len(roundings):
                keep(noise)
    return Sensitivity(
        _completed("tensor ", fake.tensors, noise),
        _completed("weights of ", fake.weights, noise),
        lambda nodes: agreement_db(fake.rounded(nodes), nodes),
        tuple(key for key, _ in roundings if key not in noise),
    )


def _agreement_db(wanted: Sequence[Outputs], found: Sequence[Outputs]) -> float:
    """Return the agreement of the output that agrees least, over all feeds together."""

    def whole(outputs: Sequence[Outputs], name: str) -> NDArray[Any]:
        return np.concatenate([each[name].ravel() for each in outputs])

    return min(closeness_db(whole(wanted, name), whole(found, name)) for name in wanted[0])


def _completed(kind: str, names: Sequence[str], noise: Mapping[str, float]) -> dict[str, float]:
    """Return noise by name; what was not measured counts as the worst that was."""
    worst = max((each for key, each in noise.items() if key.startswith(kind)), default=math.inf)
    return {name: noise.get(kind + name, worst) for name in names}


def with_only(config: QuantizeConfig, integer: Iterable[str]) -> QuantizeConfig:
    """Return a scheme whose static part makes these nodes integer and no others."""
    return config.model_copy(update={"only": tuple(sorted(integer))})


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
    float_ms = _own_times(graph, {name: each.ms for name, each in floats.items()})
    operators = []
    for node in graph.graph.node:
        outputs = tuple(name for name in node.output if name)
        inputs = tuple(name for name in node.input if name and name not in constants)
        integer_ms = sum(computed.get(name, 0.0) for name in outputs)
        can_be_integer = node.name in region
        operators.append(
            Operator(
                node.name,
                inputs,
                outputs,
                float_ms[node.name],
                integer_ms if can_be_integer else math.inf,
            )
        )
    return operators, _borders(floats, integers)


def _own_times(graph: ModelProto, times: Mapping[str, float]) -> dict[str, float]:
    """Return times by node, where a session names what it fused by the last output.

    The first node of such a row, a Conv or product before its activation, is what takes the time.
    """
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    left, own = dict(times), {}
    for node in graph.graph.node:
        last = node
        while node.op_type in ANCHORS and last.output[0] not in times:
            following = readers.get(last.output[0], [])
            if len(following) != 1 or following[0].op_type not in FUSED:
                break
            last = following[0]
        own[node.name] = sum(left.pop(name, 0.0) for name in last.output)
    return own


def _plain(name: str) -> str:
    """Return the name of a tensor without what the quantization tool put behind it."""
    for suffix in SUFFIXES:
        name = name.split(suffix)[0]
    return name


def _borders(floats: Mapping[str, NodeTime], integers: Mapping[str, NodeTime]) -> dict[str, Border]:
    """Return border costs by tensor: no less than the least seen, and in proportion to elements.

    The rate is that of the largest seen: a small one takes the time that any node takes.
    """
    costs = {op: _cost([each for each in integers.values() if each.op == op]) for op in BORDERS}
    sizes = {_plain(name): each.elements for name, each in integers.items()}
    sizes |= {name: each.elements for name, each in floats.items()}
    return {
        name: Border(costs["QuantizeLinear"](size), costs["DequantizeLinear"](size))
        for name, size in sizes.items()
    }


def _cost(seen: Sequence[NodeTime]) -> Callable[[int], float]:
    """Return milliseconds by number of elements, from the times of one operator."""
    sized = [each for each in seen if each.elements]
    if not sized:
        return lambda _elements: 0.0
    least, largest = min(each.ms for each in sized), max(sized, key=lambda each: each.elements)
    rate = largest.ms / largest.elements
    return lambda elements: max(least, rate * elements)


@dataclass(frozen=True)
class Point:
    """A split, and the SQNR of its worst output in dB, found by fake quantization."""

    split: Split
    agreement_db: float


def front(
    operators: Sequence[Operator],
    borders: Mapping[str, Border],
    outputs: Sequence[str],
    sensitivity: Sensitivity,
) -> list[Point]:
    """Return splits from the fastest on, each closer to FP32 than all before it.

    Args:
        operators: nodes with their times.
        borders: what crossing costs, by tensor.
        outputs: names of the graph's outputs.
        sensitivity: noise of roundings and splits.
    """
    points: list[Point] = []
    seen: set[frozenset[str]] = set()
    for price in (0.0, *PRICES):
        charged = _charged(operators, borders, sensitivity, price)
        split = cheapest_split(*charged, outputs)
        if split.integer in seen or not split.integer:
            continue
        seen.add(split.integer)
        found = sensitivity.simulate(sorted(split.integer))
        if not points or found > points[-1].agreement_db + STEP_DB:
            points.append(Point(split, found))
    return points


def _charged(
    operators: Sequence[Operator],
    borders: Mapping[str, Border],
    sensitivity: Sensitivity,
    price: float,
) -> tuple[list[Operator], dict[str, Border]]:
    """Return operators and borders where noise as large as the signal costs price x all time."""
    rate = price * sum(each.float_ms for each in operators)
    weights, none = sensitivity.weights, Border(0.0, 0.0)
    charged = [
        replace(each, integer_ms=each.integer_ms + rate * weights.get(each.name, 0.0))
        for each in operators
    ]
    rounded = {
        name: replace(borders.get(name, none), rounded_ms=rate * noise)
        for name, noise in sensitivity.tensors.items()
    }
    return charged, {**borders} | rounded
