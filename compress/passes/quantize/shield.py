"""Keep float layers float that stand between integers.

ONNX Runtime 1.32 rounds the weights of a Conv, ConvTranspose or Gemm by itself, with one scale per
tensor, where its input comes from DequantizeLinear and its output goes to QuantizeLinear. A Conv
becomes an integer one; with a Relu behind it it stays float, with weights that are rounded all the
same. Whoever left such a layer float, for its quality, finds it spoiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

__all__ = ["SHIELD_SUFFIX", "shield_floats"]

SHIELD_SUFFIX = "_clipped"

ROUNDED = ("Conv", "ConvTranspose", "Gemm")  # whose weights ONNX Runtime rounds by itself
BETWEEN = ("Clip", "Relu")  # what may stand between such a node and QuantizeLinear


def shield_floats(model: ModelProto) -> list[str]:
    """Put a Clip that changes nothing between DequantizeLinear and such nodes, in place.

    It clips to what integers of the scale can say, which costs one pass over the tensor.

    Returns:
        The names of the nodes that are float for good now.
    """
    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    clipped: dict[str, str] = {}
    nodes: list[NodeProto] = []
    shielded = []
    for node in graph.node:
        maker = makers.get(node.input[0]) if node.op_type in ROUNDED else None
        is_float = maker is not None and node.input[1] in constants
        if is_float and _is_undone(maker, constants) and _is_quantized(node, readers):
            read = node.input[0]
            if read not in clipped:
                clipped[read] = f"{read}{SHIELD_SUFFIX}"
                nodes.append(_clip(model, maker, constants, clipped[read]))
            node.input[0] = clipped[read]
            shielded.append(node.name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return shielded


def _is_undone(node: NodeProto | None, constants: dict[str, Any]) -> bool:
    """Whether a node is a DequantizeLinear with a constant scale and zero point."""
    if node is None or node.op_type != "DequantizeLinear" or len(node.input) < 3:
        return False
    return all(name in constants for name in node.input[1:3])


def _is_quantized(node: NodeProto, readers: dict[str, list[NodeProto]]) -> bool:
    """Whether what a node makes is quantized, at once or behind a Relu or Clip."""
    following = [*readers.get(node.output[0], ())]
    for each in [*following]:
        if each.op_type in BETWEEN:
            following += readers.get(each.output[0], ())
    return any(each.op_type == "QuantizeLinear" for each in following)


def _clip(
    model: ModelProto, undone: NodeProto | None, constants: dict[str, Any], made: str
) -> NodeProto:
    assert undone is not None
    scale, zero = (numpy_helper.to_array(constants[name]) for name in undone.input[1:3])
    limits = np.iinfo(zero.dtype)
    ends = (scale * (np.float32(end) - zero.astype(np.float32)) for end in (limits.min, limits.max))
    names = [f"{made}_{end}" for end in ("low", "high")]
    for name, value in zip(names, ends, strict=True):
        array: NDArray[np.float32] = np.asarray(value, np.float32).reshape(())
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return helper.make_node("Clip", [undone.output[0], *names], [made], name=made)
