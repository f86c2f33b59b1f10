"""Q/DQ in FP8 (E4M3) instead of int8: floats of 4 bits for the exponent and 3 for the mantissa.

A scale takes the largest value to 448, the largest that the format has, and what lies beyond it
saturates (Micikevicius et al. 2022, "FP8 Formats for Deep Learning"). GPUs compute so from compute
capability 8.9 on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from aigc_compress.errors import PassError

from ..operators import BORDERS

__all__ = ["OLDEST_OPSET", "in_float8"]

OLDEST_OPSET = 19  # of Q/DQ with float8
LARGEST = 448.0
INT8_STEPS = 127.0  # in which the library writes half a symmetric range


def in_float8(quantized: ModelProto, before: ModelProto) -> ModelProto:
    """Return a graph with FP8 where it has the int8 that was not in the graph before.

    Args:
        quantized: with symmetric int8 Q/DQ, whose zero points are 0.
        before: the same graph in floats, its nodes named as there; weights are rounded from its.

    Raises:
        PassError: the graph's opset is older than FP8, or nothing in it became int8.
    """
    opset = next((o.version for o in quantized.opset_import if o.domain in ("", "ai.onnx")), 1)
    if opset < OLDEST_OPSET:
        raise PassError(f"FP8 needs opset {OLDEST_OPSET}, and this graph has {opset}.")
    changed = ModelProto()
    changed.CopyFrom(quantized)
    stored = {each.name: each for each in changed.graph.initializer}
    known = {name for node in before.graph.node for name in node.output}
    borders = [
        node
        for node in changed.graph.node
        if node.op_type in BORDERS and node.output[0] not in known
    ]
    if not borders:
        raise PassError("Nothing to bring to FP8: what layers read is quantized already.")
    scales = {node.input[1] for node in borders}
    for name in scales:
        scale = numpy_helper.to_array(stored[name])
        wider = (scale * np.float32(INT8_STEPS / LARGEST)).astype(scale.dtype)
        stored[name].CopyFrom(numpy_helper.from_array(wider, name))
    for name in {node.input[2] for node in borders}:
        zero = numpy_helper.to_array(stored[name])
        stored[name].CopyFrom(_float8(np.zeros(zero.shape, np.float32), name))
    for border, weight in _weights(changed, before, borders):
        scale = numpy_helper.to_array(stored[border.input[1]])
        if scale.ndim:
            axis = next((each.i for each in border.attribute if each.name == "axis"), 1)
            scale = np.expand_dims(scale, [*set(range(weight.ndim)) - {axis % weight.ndim}])
        stored[border.input[0]].CopyFrom(_float8(weight / scale, border.input[0]))
    return changed


def _weights(
    quantized: ModelProto, before: ModelProto, borders: list[NodeProto]
) -> Iterator[tuple[NodeProto, np.ndarray]]:
    """Yield what takes weights from int8, with the floats that they were rounded from."""
    floats = {each.name: each for each in before.graph.initializer}
    layers = {node.name: node for node in before.graph.node}
    integers = {each.name for each in quantized.graph.initializer}
    makers = {node.output[0]: node for node in borders if node.input[0] in integers}
    done = set()
    for node in quantized.graph.node:
        for index, name in enumerate(node.input):
            if name in makers and name not in done:
                done.add(name)
                yield makers[name], numpy_helper.to_array(floats[layers[node.name].input[index]])


def _float8(values: np.ndarray, name: str) -> TensorProto:
    import ml_dtypes

    bounded = np.clip(values, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn)
    return numpy_helper.from_array(bounded, name)
