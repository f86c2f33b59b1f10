"""Linear layers of a graph whose channels are scaled: read, measured and written back in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .folding.linear import LINEAR, Linear, read_linear

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "POINTWISE",
    "POOLS",
    "STANDARD",
    "input_sizes",
    "layers_in",
    "name_of",
    "output_sizes",
    "replace_constant",
    "write_layer",
]

Floats = NDArray[np.float64]

# Operators with f(s x) = s f(x) for s > 0; the pools work on each channel at axis 1.
POINTWISE = ("LeakyRelu", "Relu")
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")
STANDARD = ("", "ai.onnx")


def layers_in(graph: ir.Graph) -> dict[ir.Node, Linear]:
    """Return the arithmetic of the main graph's layers with constant weights of float32."""
    found = ((node, _layer(node)) for node in graph)
    return {node: linear for node, linear in found if linear is not None}


def output_sizes(linear: Linear) -> Floats:
    """Return the largest magnitude of the weights that make each output channel."""
    return _sizes(linear.weights, 1 if linear.outputs_first else 2)


def input_sizes(linear: Linear) -> Floats:
    """Return the largest magnitude of the weights that read each input channel."""
    return _sizes(linear.weights, 2 if linear.outputs_first else 1)


def write_layer(node: ir.Node, linear: Linear) -> None:
    """Write weights and bias into a node, in place; Gemm's beta is in the bias already."""
    replace_constant(node, 1, linear.weights.reshape(linear.shape))
    if linear.bias is not None:
        replace_constant(node, 2, linear.bias)
        node.attributes.pop("beta", None)


def replace_constant(node: ir.Node, index: int, table: Floats) -> None:
    """Give a node another constant, in place; others that read the old one keep it."""
    import onnx_ir as ir

    old, tensor = node.inputs[index], ir.tensor(table.astype(np.float32))
    assert old is not None
    assert isinstance(node.graph, ir.Graph)
    name = f"{old.name}_of_{node.outputs[0].name}"
    while name in node.graph.initializers:
        name += "_"
    if len(old.uses()) == 1 and not old.is_graph_output() and old.is_initializer():
        name = str(old.name)
        del node.graph.initializers[name]
    new = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(table.shape))
    new.const_value = tensor
    node.graph.register_initializer(new)
    node.replace_input_with(index, new)


def name_of(node: ir.Node) -> str:
    """Return a node's name, or that of its output where it has none."""
    return str(node.name or node.outputs[0].name)


def _layer(node: ir.Node) -> Linear | None:
    import onnx_ir as ir

    if node.op_type not in LINEAR or node.domain not in STANDARD:
        return None
    linear, weights = read_linear(node), node.inputs[1]
    if linear is None or weights is None or weights.const_value is None:
        return None
    return linear if weights.const_value.dtype == ir.DataType.FLOAT else None


def _sizes(weights: Floats, axis: int) -> Floats:
    others = tuple(each for each in range(1, weights.ndim) if each != axis)
    largest: Floats = np.abs(weights).max(axis=others)
    return largest.ravel()
