"""Weights of operators that compute on floats, stored as INT8: a quarter of the bytes, as fast.

A file holds integers and scales, ONNX Runtime makes floats of them once, when it loads the graph.
What a graph needs in memory and the time of a call stay those of floats.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step
from aigc_compress.errors import PassError

from .base import Context
from .graphs import all_graphs, drop_unread, graphs_of
from .operators import STORED_SUFFIX, all_nodes, operators_at_run_time
from .recurrent.constants import OLDEST_WITH_FREE_INITIALIZERS
from .rounding import round_weights

__all__ = ["STORABLE", "StoreConfig", "StorePass", "store_weights"]

SMALLEST_WEIGHT = 1024
EXPORTER = "pkg.torch."
SUFFIXES = ("_int8", "_scale", "_cast", STORED_SUFFIX)
Axes = tuple[int, ...]


def _of_gemm(node: NodeProto) -> Axes:
    is_transposed = any(each.name == "transB" and each.i for each in node.attribute)
    return (0,) if is_transposed else (1,)


# By operator: which inputs are weights, and along which of their axes scales differ.
STORABLE: Mapping[str, tuple[tuple[int, ...], Callable[[NodeProto], Axes]]] = {
    "Conv": ((1,), lambda _node: (0,)),
    "ConvTranspose": ((1,), lambda _node: (1,)),
    "GRU": ((1, 2), lambda _node: (0, 1)),
    "Gather": ((0,), lambda _node: (0,)),
    "Gemm": ((1,), _of_gemm),
    "LSTM": ((1, 2), lambda _node: (0, 1)),
    "MatMul": ((1,), lambda _node: (-1,)),
    "RNN": ((1, 2), lambda _node: (0, 1)),
}


class StoreConfig(BaseModel):
    """Settings of weights stored as INT8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    least: int = Field(
        default=SMALLEST_WEIGHT, ge=2, description="elements that a tensor of weights has at least"
    )
    rounding: Literal["adaptive", "nearest"] = Field(
        default="adaptive",
        description="adaptive rounds for the outputs of Conv, Gemm and MatMul; needs calibration",
    )


class StorePass:
    """Write a graph with what computes on floats stored as INT8, symmetric, per output channel.

    What the file needs not hold goes too: biases as integers with scales of their own become the
    floats that the engine makes the same integers of, and inferred shapes and an exporter's notes
    are dropped.
    """

    name = "store"
    config = StoreConfig

    def run(self, artifact: Artifact, config: StoreConfig, context: Context) -> Artifact:
        """Return the graph with weights that ONNX Runtime turns into floats when it loads it.

        The step's numbers tell how many weights were converted, by operator, which layers were
        rounded for their outputs, how many biases became floats, and the bytes of the graph.

        Raises:
            PassError: no operator that computes on floats has weights large enough, or there are
                no calibration feeds to round with.
        """
        before: ModelProto = artifact.payload
        model, converted = store_weights(before, STORABLE, least=config.least)
        if not converted:
            raise PassError(
                f"No weights to store as INT8: no {', '.join(STORABLE)} that computes on floats"
                f" has constant float32 weights of at least {config.least} elements."
            )
        numbers: dict[str, Any] = {
            "weights_only": {"converted": sum(converted.values()), "operators": converted}
        }
        if config.rounding == "adaptive":
            feeds = context.calibration
            model, layers = round_weights(
                before, model, feeds, seed=context.seed, on_step=context.on_step
            )
            numbers["rounding"] = {"layers": [*layers]}
        model, numbers["float_biases"] = _with_float_biases(model)
        _drop_notes(model.graph)
        numbers["bytes"] = {"before": before.ByteSize(), "after": model.ByteSize()}
        step = Step(self.name, config.model_dump(mode="json"), context.seed, numbers)
        return artifact.then(model, step, stage="onnx")


@dataclass(frozen=True)
class _Reading:
    """One input of a node that reads a constant as weights."""

    node: NodeProto
    place: int
    axes: Axes


def store_weights(
    model: ModelProto, operators: Collection[str], *, least: int = SMALLEST_WEIGHT
) -> tuple[ModelProto, dict[str, int]]:
    """Return a copy with the float32 weights of these operators as INT8 and scales.

    A tensor that something else reads too stays float: the file would hold it twice.

    Args:
        model: any graph.
        operators: keys of `STORABLE`.
        least: elements that a tensor has at least.

    Returns:
        The copy, or the model itself where nothing was converted, and the number of tensors
        converted by the operator that reads them.
    """
    stored = ModelProto()
    stored.CopyFrom(model)
    read = Counter(name for node in all_nodes(stored.graph) for name in node.input)
    read.update(output.name for graph in all_graphs(stored.graph) for output in graph.output)
    taken = {name for node in all_nodes(stored.graph) for name in (*node.input, *node.output)}
    taken.update(each.name for graph in all_graphs(stored.graph) for each in graph.initializer)
    converted: Counter[str] = Counter()
    replaced: set[str] = set()
    for graph in all_graphs(stored.graph):
        readings = _readings(graph, operators)
        made: list[NodeProto] = []
        for weight in [*graph.initializer]:
            found = readings.get(weight.name, [])
            axes = {each.axes for each in found}
            if len(axes) != 1 or len(found) != read[weight.name] or not _is_large(weight, least):
                continue
            stem = _free_stem(weight.name, taken)
            made += _as_int8(graph, weight, axes.pop(), stem)
            converted[found[0].node.op_type] += 1
            replaced.add(weight.name)
            for each in found:
                each.node.input[each.place] = f"{stem}{STORED_SUFFIX}"
        nodes = [*made, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
    if not converted:
        return model, {}
    drop_unread(stored, replaced)
    stored.ir_version = max(stored.ir_version, OLDEST_WITH_FREE_INITIALIZERS)
    return stored, dict(sorted(converted.items()))


def _readings(graph: GraphProto, operators: Collection[str]) -> dict[str, list[_Reading]]:
    """Return what reads constants as weights, here or further inside, by name."""
    found: dict[str, list[_Reading]] = defaultdict(list)
    for node in _nodes_in_scope(graph):
        if node.op_type in operators and not node.domain:
            places, axes_of = STORABLE[node.op_type]
            for place in places:
                if place < len(node.input) and node.input[place]:
                    found[node.input[place]].append(_Reading(node, place, axes_of(node)))
    return found


def _nodes_in_scope(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield nodes that see a graph's constants: its own, and those inside that don't hide them."""
    own = {each.name for each in graph.initializer}
    for node in graph.node:
        yield node
        for inner in graphs_of(node):
            hidden = {each.name for each in (*inner.initializer, *inner.input)}
            if not own & hidden:
                yield from _nodes_in_scope(inner)


def _is_large(weight: TensorProto, least: int) -> bool:
    is_float = weight.data_type == TensorProto.FLOAT
    return is_float and len(weight.dims) > 1 and int(np.prod(weight.dims)) >= least


def _free_stem(stem: str, taken: set[str]) -> str:
    """Return a beginning of names that nothing has yet, and take them."""
    free, count = stem, 0
    while taken & {f"{free}{each}" for each in SUFFIXES}:
        count += 1
        free = f"{stem}_{count}"
    taken.update(f"{free}{each}" for each in SUFFIXES)
    return free


def _as_int8(graph: GraphProto, weight: TensorProto, axes: Axes, stem: str) -> list[NodeProto]:
    """Add the INT8 copy of a weight and return the nodes that make floats of it.

    Cast and Mul, not DequantizeLinear: ONNX Runtime 1.32 folds the former when it loads the graph,
    but keeps the latter and runs it at every call (0.4 of 1.6 ms in the reference GAN).
    """
    integers, scale = _rounded(numpy_helper.to_array(weight), axes)
    table, scales, cast, floats = (f"{stem}{each}" for each in SUFFIXES)
    graph.initializer.append(numpy_helper.from_array(integers, table))
    graph.initializer.append(numpy_helper.from_array(scale, scales))
    return [
        helper.make_node("Cast", [table], [cast], to=TensorProto.FLOAT, name=cast),
        helper.make_node("Mul", [cast, scales], [floats], name=f"{stem}_mul"),
    ]


def _rounded(
    weights: NDArray[np.float32], axes: Axes
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return integers in [-127, 127] and scales that broadcast to them, one per index of `axes`."""
    kept = {axis % weights.ndim for axis in axes}
    others = tuple(axis for axis in range(weights.ndim) if axis not in kept)
    largest = np.abs(weights).max(axis=others, keepdims=True)
    scale = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(weights / scale), -127, 127).astype(np.int8), scale


def _with_float_biases(model: ModelProto) -> tuple[ModelProto, int]:
    """Return the graph with int32 biases as floats, and how many, where the engine takes them so.

    ONNX Runtime rounds a float bias between integers to the scale that it would have had in the
    file. Where a version does not, the operator would be float: then all biases stay as they are.
    """
    plain = ModelProto()
    plain.CopyFrom(model)
    graph = plain.graph
    tables = {each.name: each for each in graph.initializer}
    kept: list[NodeProto] = []
    replaced: set[str] = set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or not _is_bias(tables.get(node.input[0])):
            kept.append(node)
            continue
        integers, scale = (numpy_helper.to_array(tables[name]) for name in node.input[:2])
        floats = (integers * scale.astype(np.float64)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(floats, node.output[0]))
        replaced.update(node.input)
    count = len(graph.node) - len(kept)
    del graph.node[:]
    graph.node.extend(kept)
    drop_unread(plain, replaced)
    if not count or _integer_operators(plain) != _integer_operators(model):
        return model, 0
    return plain, count


def _is_bias(table: TensorProto | None) -> bool:
    return table is not None and table.data_type == TensorProto.INT32 and len(table.dims) == 1


def _integer_operators(model: ModelProto) -> Mapping[str, int]:
    operators: Mapping[str, int] = operators_at_run_time(model)["int8"]
    return operators


def _drop_notes(graph: GraphProto) -> None:
    """Drop what any tool infers again, and what torch's exporter says of the module."""
    del graph.value_info[:]
    kept = [each for each in graph.metadata_props if not each.key.startswith(EXPORTER)]
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
