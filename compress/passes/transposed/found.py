"""Find the ConvTranspose layers of a model, and the reasons to leave some alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

from aigc_compress.passes.graphs import known_shapes
from aigc_compress.passes.operators import all_nodes

from .geometry import read_geometry
from .layer import Layer

__all__ = ["find_layers", "is_transposed"]

INSIDE = "it stands inside an If, Loop, Scan or function"


def find_layers(model: ModelProto) -> tuple[dict[str, Layer], dict[str, str]]:
    """Return the layers that can be rewritten, and why others cannot, by the output's name."""
    finder = _Finder(model)
    layers: dict[str, Layer] = {}
    reasons = {node.output[0]: INSIDE for node in _inner_nodes(model) if is_transposed(node)}
    for node in filter(is_transposed, model.graph.node):
        found = finder.read(node)
        if isinstance(found, Layer):
            layers[node.output[0]] = found
        else:
            reasons[node.output[0]] = found
    return layers, reasons


def is_transposed(node: NodeProto) -> bool:
    """Whether a node is ONNX's own ConvTranspose."""
    return node.op_type == "ConvTranspose" and node.domain in ("", "ai.onnx")


def _inner_nodes(model: ModelProto) -> Iterator[NodeProto]:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)
    for function in model.functions:
        yield from all_nodes(function)


class _Finder:
    """What reading a layer needs to know of the model around it."""

    def __init__(self, model: ModelProto) -> None:
        self._stored: Mapping[str, TensorProto] = {
            each.name: each for each in model.graph.initializer
        }
        self._readers = Counter(name for node in all_nodes(model.graph) for name in node.input)
        self._inputs = {each.name for each in model.graph.input}
        self._outputs = {each.name for each in model.graph.output}
        self._shapes = known_shapes(model)

    def read(self, node: NodeProto) -> Layer | str:
        """Return the layer of a node, or the reason why it is left alone."""
        name = node.input[1]
        weight = self._constant(name, "weights")
        if isinstance(weight, str):
            return weight
        if name in self._outputs:
            return "its weights are an output of the graph too"
        if self._readers[name] > 1:
            return "its weights are shared with another node"
        bias = (
            self._constant(node.input[2], "bias") if len(node.input) > 2 and node.input[2] else None
        )
        if isinstance(bias, str):
            return bias
        shape = self._shapes.get(node.input[0], ())
        rank = weight.ndim - 2
        sizes = tuple(shape[2:]) if len(shape) == weight.ndim else (None,) * rank
        geometry = read_geometry(node, weight.shape, sizes)
        return geometry if isinstance(geometry, str) else Layer(geometry, weight, bias, sizes)

    def _constant(self, name: str, what: str) -> NDArray[Any] | str:
        """Return a constant's numbers, or why it is none."""
        if name not in self._stored:
            return f"its {what} are computed, not constant: fold constants first"
        if name in self._inputs:
            return f"its {what} are an input that a caller may set"
        if self._stored[name].data_type != TensorProto.FLOAT:
            return f"its {what} are no float32"
        return numpy_helper.to_array(self._stored[name])
