"""Weights that are stored as INT8 though their operator computes on floats: ConvTranspose."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from aigc_compress.passes.base import Context
from aigc_compress.passes.operators import STORED_SUFFIX, all_nodes

from .config import QuantizeConfig

__all__ = ["store_weights"]

SMALLEST_WEIGHT = 1024


def store_weights(
    model: ModelProto, _config: QuantizeConfig, _context: Context
) -> tuple[ModelProto, dict[str, Any]]:
    """Store ConvTranspose's weights as INT8; ONNX Runtime makes floats of them when it loads."""
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    weights = {each.name: each for each in graph.initializer if _is_storable(each)}
    nodes, replaced = [], set()
    for node in graph.node:
        if node.op_type == "ConvTranspose" and node.input[1] in weights:
            replaced.add(node.input[1])
            nodes += _store_as_int8(graph, node, weights[node.input[1]])
        nodes.append(node)
    if not replaced:
        return model, {}
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph, replaced)
    told = {"operators": ["ConvTranspose"], "weights": "int8, symmetric, per output channel"}
    return quantized, {"weights_only": told | {"converted": len(replaced)}}


def _is_storable(weight: Any) -> bool:
    is_float = weight.data_type == onnx.TensorProto.FLOAT
    return is_float and int(np.prod(weight.dims)) >= SMALLEST_WEIGHT


def _drop_unused(graph: Any, names: set[str]) -> None:
    """Drop those of the named initializers that nothing reads any more, here or further inside."""
    used = {name for node in all_nodes(graph) for name in node.input}
    unused = names - used - {each.name for each in graph.output}
    for field in (graph.initializer, graph.input):  # before IR 4 a weight was an input too
        kept = [each for each in field if each.name not in unused]
        del field[:]
        field.extend(kept)


def _store_as_int8(graph: Any, node: Any, weight: Any) -> list[Any]:
    """Add the INT8 copy of a weight and return the nodes that make floats of it; axis 1 is output.

    Cast and Mul, not DequantizeLinear: ONNX Runtime 1.32 folds the former when it loads the graph,
    but keeps the latter and runs it at every call (0.4 of 1.6 ms in the reference GAN).
    """
    values = numpy_helper.to_array(weight).astype(np.float32)
    per_axis = np.abs(values).max(axis=(0, *range(2, values.ndim)), keepdims=True)
    scale = np.maximum(per_axis / 127, np.finfo(np.float32).tiny).astype(np.float32)
    integers = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    stem = f"{weight.name}_{node.output[0]}"
    for name, array in ((f"{stem}_int8", integers), (f"{stem}_scale", scale)):
        graph.initializer.append(numpy_helper.from_array(array, name))
    node.input[1] = f"{stem}{STORED_SUFFIX}"
    to_float = onnx.TensorProto.FLOAT
    cast = helper.make_node(
        "Cast", [f"{stem}_int8"], [f"{stem}_cast"], to=to_float, name=f"{stem}_cast"
    )
    scaled = [f"{stem}_cast", f"{stem}_scale"]
    return [cast, helper.make_node("Mul", scaled, [node.input[1]], name=f"{stem}_mul")]
