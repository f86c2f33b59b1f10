"""Weights as large as they can be while no sum of two products leaves int16.

x86 without VNNI multiplies uint8 with int8 by VPMADDUBSW, which adds two neighbouring products in
int16 and saturates there. The usual remedy is 7-bit weights, which costs 6 dB. But only pairs that
really are neighbours count, of one sign, and the largest of them rarely holds two of the largest
weights. So every output channel gets the smallest scale at which each of its pairs stays within
int16 for any activations, and most of those 6 dB come back. Depthwise convolutions are multiplied
one by one and keep all 8 bits.

Which weights are neighbours is the kernel's choice; `integer_products` tells that of ONNX Runtime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from aigc_compress.passes.integer_products import neighbours, weight_rows
from aigc_compress.passes.operators import all_nodes

__all__ = ["narrow_pairs", "pair_scales"]

LAYERS = ("Conv", "Gemm", "MatMul")
LARGEST = 127
MOST = 32767 // 255  # of two weights of one sign, so that 255 times their sum fits into int16
TINY = np.finfo(np.float32).tiny

Overrides = dict[str, list[dict[str, Any]]]


def pair_scales(model: ModelProto, nodes: Collection[str]) -> Overrides:
    """Return scales per channel of the weights of these nodes, in the form of the tool's overrides.

    Args:
        model: of floats.
        nodes: names of the nodes that become integer.

    Returns:
        By name of the weight, one entry per output channel. A weight that several nodes read, or
        that is no float32 constant, has none. Constants of other operators keep all bits.
    """
    readers = Counter(name for node in all_nodes(model.graph) for name in node.input)
    tables = {each.name: each for each in model.graph.initializer}
    found: Overrides = {}
    for node in model.graph.node:
        if node.name not in nodes:
            continue
        if node.op_type not in LAYERS:  # Add and Mul work element by element
            found |= {name: [{"reduce_range": False}] for name in node.input if name in tables}
            continue
        table = tables.get(node.input[1])
        if table is None or readers[table.name] != 1:
            continue
        rows = _rows(node, table, TensorProto.FLOAT)
        if rows is not None:
            axis = 0 if node.op_type == "Conv" or _is_turned(node) else 1
            found[table.name] = [
                {"axis": axis, "scale": np.float32(scale), "zero_point": np.int8(0)}
                for scale in _scales(rows, is_alone=_is_depthwise(node, table))
            ]
    return found


def narrow_pairs(model: ModelProto) -> None:
    """Bring pairs of integer weights that rounding has left a step too large back, in place.

    Args:
        model: with weights behind DequantizeLinear; those on a scale of `pair_scales` need no more
            than a step or two.
    """
    tables = {each.name: each for each in model.graph.initializer}
    for node, table in _stored(model, tables):
        rows = _rows(node, table, TensorProto.INT8)
        if rows is None or _is_depthwise(node, table):
            continue
        paired = neighbours(rows.astype(np.int32))
        excess = _largest_sums(paired) - MOST
        if (excess <= 0).all():
            continue
        larger = np.abs(paired).argmax(-1)[..., None]
        value = np.take_along_axis(paired, larger, -1)
        step = np.sign(value) * np.maximum(excess, 0)[..., None]
        np.put_along_axis(paired, larger, value - step, -1)
        narrowed = paired.reshape(len(rows), -1)[:, : rows.shape[1]]
        restored = _table(node, narrowed, tuple(table.dims)).astype(np.int8)
        table.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(restored), table.name))


def _stored(
    model: ModelProto, tables: Mapping[str, TensorProto]
) -> Iterator[tuple[NodeProto, TensorProto]]:
    """Yield layers with their tables of integers."""
    undone = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in tables
    }
    for node in model.graph.node:
        if node.op_type in LAYERS and node.input[1] in undone:
            yield node, tables[undone[node.input[1]]]


def _scales(rows: NDArray[np.float32], *, is_alone: bool) -> NDArray[np.float32]:
    """Return the smallest scale of every row (M,) that keeps weights and their pairs in range."""
    scales = np.abs(rows).max(-1) / LARGEST
    if not is_alone:
        # Rounding may add half a step to each of two.
        scales = np.maximum(scales, _largest_sums(neighbours(rows)).max(-1) / (MOST - 1))
    lowest = max(float(scales.max()) * 1e-12, float(TINY))  # rows of zeros have a scale too
    return np.maximum(np.where(scales > 0, scales, 1.0), lowest).astype(np.float32)


def _largest_sums(paired: NDArray[Any]) -> NDArray[Any]:
    """Return the largest magnitude of the sum of one sign in a pair: (M, P) of (M, P, 2)."""
    high, low = np.maximum(paired, 0).sum(-1), np.minimum(paired, 0).sum(-1)
    larger: NDArray[Any] = np.maximum(high, -low)
    return larger


def _rows(node: NodeProto, table: TensorProto, kind: int) -> NDArray[Any] | None:
    """Return weights as they are multiplied (M, K); None where they are of another dtype."""
    if table.data_type != kind:
        return None
    return weight_rows(node.op_type, numpy_helper.to_array(table), _attributes(node))


def _table(node: NodeProto, rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the table that has these rows."""
    if node.op_type == "Conv":
        return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
    return rows if _is_turned(node) else rows.T


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _is_turned(node: NodeProto) -> bool:
    """Whether a matrix has its outputs first."""
    return bool(_attributes(node).get("transB", 0))


def _is_depthwise(node: NodeProto, table: TensorProto) -> bool:
    is_single = node.op_type == "Conv" and table.dims[1] == 1
    return is_single and bool(_attributes(node).get("group", 1) == table.dims[0] > 1)
