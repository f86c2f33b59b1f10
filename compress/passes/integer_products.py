"""Find the integer products of a graph, with weights and activations as a kernel multiplies them.

Every Conv, Gemm and MatMul is a product of rows of activations with columns of weights. What is
adjacent along their common axis, the reduction, matters where a processor adds neighbours in few
bits. The order taken here is that of ONNX Runtime 1.32 on x86: input channels are innermost, taps
of the kernel outside them, and matrices as they are.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .graphs import graphs_of
from .probe import inferred_types

__all__ = [
    "IntegerProduct",
    "find_products",
    "neighbours",
    "quantize_dynamically",
    "weight_rows",
]

Integers = NDArray[np.integer[Any]]
QDQ = ("Conv", "Gemm", "MatMul")  # between DequantizeLinear nodes
# Places among the inputs: activations, weights, zero point of the activations.
PLACES: Mapping[str, tuple[int, int, int | None]] = {
    "ConvInteger": (0, 1, 2),
    "DynamicQuantizeMatMul": (0, 1, None),
    "MatMulInteger": (0, 1, 2),
    "MatMulIntegerToFloat": (0, 1, 4),
    "QGemm": (0, 3, 2),
    "QLinearConv": (0, 3, 2),
    "QLinearMatMul": (0, 3, 2),
}
DYNAMIC = ("DynamicQuantizeLSTM", "DynamicQuantizeMatMul")  # read floats, quantize them inside
LSTM_WEIGHTS = (1, 2)
NOT_KNOWN = ("QAttention",)


def _no_weights() -> Integers:
    return np.zeros((0, 0), np.int8)


@dataclass(frozen=True)
class IntegerProduct:
    """One product of integers.

    Attributes:
        name: of the node, or of its first output.
        operator: type of the node.
        output: name of its first output that has one.
        activations: name of the tensor that rows are taken from.
        zero_point: of the activations; padding of a Conv holds it.
        is_dynamic: whether that tensor holds floats, which are quantized at every call.
        is_unsigned: whether activations are uint8.
        weights: integers (M, K): one row per output channel, K along the reduction, channels
            innermost; (0, 0) where the layout is not known.
        groups: the M rows fall into that many groups, each with inputs of its own.
        kernel: spatial sizes of a Conv's kernel, () for matrices.
        attributes: of the node.
        is_inside: whether it stands in an If, Loop or Scan.
        part: which of several products of one node.
        note: what is not covered.
    """

    name: str
    operator: str
    output: str
    activations: str
    zero_point: int = 0
    is_dynamic: bool = False
    is_unsigned: bool = True
    weights: Integers = field(default_factory=_no_weights)
    groups: int = 1
    kernel: tuple[int, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    is_inside: bool = False
    part: str = ""
    note: str = ""

    @property
    def is_depthwise(self) -> bool:
        """Whether every output channel has an input channel for itself."""
        return bool(self.kernel) and self.weights.shape == (self.groups, np.prod(self.kernel))

    def rows(self, values: NDArray[Any], rng: np.random.Generator, most: int) -> Integers:
        """Return quantized activations of some outputs: int32 (P, groups, K), P <= most.

        Args:
            values: the tensor `activations`.
            rng: what chooses the positions, without putting any back.
            most: number of positions.
        """
        if self.is_dynamic:
            values = quantize_dynamically(values)
        if self.kernel:
            return _patches(self, values, rng, most)
        if values.ndim == 1:
            values = values[None]
        if self.attributes.get("transA"):
            values = values.T
        rows = values.reshape(-1, values.shape[-1])
        chosen = rng.choice(len(rows), min(most, len(rows)), replace=False)
        return rows[np.sort(chosen)].astype(np.int32)[:, None]


def find_products(model: ModelProto) -> list[IntegerProduct]:
    """Return the products of constant integer weights, of inner graphs too, in graph order."""
    types = {
        name: kind.tensor_type.elem_type
        for name, kind in inferred_types(model).items()
        if kind.HasField("tensor_type")
    }
    return list(_products(model.graph, _Scope(), types, is_inside=False))


def weight_rows(
    operator: str, table: NDArray[Any], attributes: Mapping[str, Any]
) -> NDArray[Any] | None:
    """Return the weights of a node (M, K) in the order in which they are multiplied.

    None where the table is no matrix and no kernel of a Conv.
    """
    if "Conv" in operator:
        return np.moveaxis(table, 1, -1).reshape(len(table), -1)
    if table.ndim != 2:
        return None
    return table if attributes.get("transB") else table.T


def neighbours(rows: NDArray[Any]) -> NDArray[Any]:
    """Return what is added two by two, (..., pairs, 2) of (..., K); an odd K ends beside zero."""
    odd = rows.shape[-1] % 2
    padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, odd)])
    return padded.reshape(*padded.shape[:-1], -1, 2)


def quantize_dynamically(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Round floats to uint8 as ONNX's DynamicQuantizeLinear does: [min(0, x), max(0, x)] to 255."""
    low, high = min(0.0, float(values.min(initial=0))), max(0.0, float(values.max(initial=0)))
    scale = np.float32((high - low) / 255) or np.float32(1)
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    rounded: NDArray[Any] = np.clip(np.rint(values / scale) + zero_point, 0, 255)
    return rounded.astype(np.uint8)


@dataclass(frozen=True)
class _Scope:
    """What a node sees by name: constants and makers of this graph and of those around it."""

    constants: ChainMap[str, TensorProto] = field(default_factory=lambda: ChainMap({}))
    makers: ChainMap[str, NodeProto] = field(default_factory=lambda: ChainMap({}))

    def inside(self, graph: GraphProto) -> _Scope:
        constants = {each.name: each for each in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                constants[node.output[0]] = node.attribute[0].t
        makers = {name: node for node in graph.node for name in node.output}
        return _Scope(self.constants.new_child(constants), self.makers.new_child(makers))

    def array(self, name: str) -> NDArray[Any] | None:
        found = self.constants.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def input(self, node: NodeProto, place: int | None) -> NDArray[Any] | None:
        """Return the constant at a place among the inputs of a node."""
        if place is None or place >= len(node.input):
            return None
        return self.array(node.input[place])

    def undone(self, name: str) -> NodeProto | None:
        """Return the DequantizeLinear that makes a tensor, or None."""
        maker = self.makers.get(name)
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _products(
    graph: GraphProto, outer: _Scope, types: Mapping[str, int], *, is_inside: bool
) -> Iterator[IntegerProduct]:
    scope = outer.inside(graph)
    for node in graph.node:
        for inner in graphs_of(node):
            yield from _products(inner, scope, types, is_inside=True)
        output = next(filter(None, node.output), "")
        face: dict[str, Any] = {
            "name": node.name or output,
            "operator": node.op_type,
            "output": output,
            "attributes": {each.name: helper.get_attribute_value(each) for each in node.attribute},
            "is_inside": is_inside,
        }
        if node.op_type == "DynamicQuantizeLSTM":
            yield from _lstm(node, scope, face)
        elif node.op_type in NOT_KNOWN:
            note = "how its weights are packed is not known here"
            yield IntegerProduct(activations=node.input[0], note=note, **face)
        elif (read := _read(node, scope)) is not None:
            yield _product(*read, types, face)


def _read(node: NodeProto, scope: _Scope) -> tuple[str, NDArray[Any], NDArray[Any] | None] | None:
    """Return name of activations, integer weights and zero point; None where it is no product."""
    if node.op_type in PLACES:
        place, weight_place, zero_place = PLACES[node.op_type]
        weights = scope.input(node, weight_place)
        zero_point = scope.input(node, zero_place)
        return None if weights is None else (node.input[place], weights, zero_point)
    if node.op_type not in QDQ:
        return None
    given, weight = (scope.undone(name) for name in node.input[:2])
    weights = None if weight is None else scope.input(weight, 0)
    if given is None or weights is None:
        return None
    return given.input[0], weights, scope.input(given, 2)


def _product(
    activations: str,
    integers: NDArray[Any],
    zero_point: NDArray[Any] | None,
    types: Mapping[str, int],
    face: Mapping[str, Any],
) -> IntegerProduct:
    operator, attributes = face["operator"], face["attributes"]
    is_signed = types.get(activations) == TensorProto.INT8
    more: dict[str, Any] = {
        "zero_point": 0 if zero_point is None else int(zero_point.ravel()[0]),
        "is_unsigned": not is_signed if zero_point is None else zero_point.dtype == np.uint8,
        "is_dynamic": operator in DYNAMIC,
    }
    if "Conv" in operator:
        more |= {"kernel": integers.shape[2:], "groups": int(attributes.get("group", 1))}
    weights = weight_rows(operator, integers, attributes)
    if weights is None:
        return IntegerProduct(activations=activations, note="its weights are no matrix", **face)
    return IntegerProduct(activations=activations, weights=weights, **more, **face)


def _lstm(node: NodeProto, scope: _Scope, face: Mapping[str, Any]) -> Iterator[IntegerProduct]:
    """Yield the products of inputs and of states; weights are (D, K, 4H)."""
    for place, part in zip(LSTM_WEIGHTS, ("inputs", "states"), strict=True):
        integers = scope.array(node.input[place])
        if integers is None:
            continue
        weights = np.swapaxes(integers, 1, 2).reshape(-1, integers.shape[1])
        is_state = part == "states"
        note = "states live inside the operator and are not watched" if is_state else ""
        activations = "" if is_state else node.input[0]
        yield IntegerProduct(
            activations=activations,
            weights=weights,
            is_dynamic=True,
            part=part,
            note=note,
            **face,
        )


def _patches(
    product: IntegerProduct, values: NDArray[Any], rng: np.random.Generator, most: int
) -> Integers:
    """Return what a Conv multiplies at some output positions: (P, groups, taps * channels)."""
    steps, holes = (
        np.asarray(product.attributes.get(name) or [1] * len(product.kernel))
        for name in ("strides", "dilations")
    )
    kernel = np.asarray(product.kernel)
    before, after = _pads(product, np.asarray(values.shape[2:]), steps, holes)
    widths = [(0, 0), (0, 0), *zip(before, after, strict=True)]
    padded = np.pad(values, widths, constant_values=product.zero_point)
    sizes = (np.asarray(padded.shape[2:]) - (kernel - 1) * holes - 1) // steps + 1
    count = int(np.prod(sizes)) * len(values)
    flat = np.sort(rng.choice(count, min(most, count), replace=False))
    batch, *spots = np.unravel_index(flat, (len(values), *sizes))
    taps = np.indices(product.kernel).reshape(len(kernel), -1)
    at = [
        spot[:, None] * step + tap[None] * hole
        for spot, step, tap, hole in zip(spots, steps, taps, holes, strict=True)
    ]
    found = padded[(batch[:, None], slice(None), *at)]  # (P, taps, channels)
    grouped = found.reshape(*found.shape[:2], product.groups, -1)
    ordered = np.moveaxis(grouped, 2, 1)
    return ordered.reshape(len(flat), product.groups, -1).astype(np.int32)


def _pads(
    product: IntegerProduct, sizes: Integers, steps: Integers, holes: Integers
) -> tuple[Sequence[int], Sequence[int]]:
    """Return the padding before and after each spatial axis."""
    automatic = product.attributes.get("auto_pad", b"NOTSET")
    count = len(product.kernel)
    if automatic == b"NOTSET":
        pads = product.attributes.get("pads") or [0] * 2 * count
        return pads[:count], pads[count:]
    if automatic == b"VALID":
        return [0] * count, [0] * count
    reach = (np.asarray(product.kernel) - 1) * holes + 1
    total = np.maximum((-(-sizes // steps) - 1) * steps + reach - sizes, 0)
    less, more = (total // 2).tolist(), (total - total // 2).tolist()
    return (less, more) if automatic == b"SAME_UPPER" else (more, less)
