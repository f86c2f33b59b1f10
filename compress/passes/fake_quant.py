"""Fake quantization: a graph of floats whose roundings are switched on and off between runs.

Scales, zero points and rounded weights are those of a quantized form of the same graph, so any
split of it between integers and floats can be judged without making it. Kernels on integers differ
from this by little: requantization stands where it will stand, and sums in int32 are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.task import Feeds

from .folding import dequantized

__all__ = ["FakeQuant", "stored_constants"]

SWITCHES = "aigc_compress_switches"
OF_AN_OUTPUT = "_QuantizeLinear_Input"  # what the tool puts behind the name of a graph's output
Quantizer = tuple[TensorProto, TensorProto]  # scale and zero point
Switch = tuple[str, str]  # the kind, and the name of a tensor or node
TENSOR, WEIGHTS = "tensor", "weights"


class FakeQuant:
    """Runs a graph with some of its activations and weights rounded.

    Attributes:
        tensors: activations that can be rounded, each for all its readers.
        weights: names of nodes whose constants can be rounded.
    """

    def __init__(self, floats: ModelProto, quantized: ModelProto) -> None:
        """Build the graph with its switches.

        Args:
            floats: every node of its main graph has a name.
            quantized: the same nodes with QuantizeLinear and DequantizeLinear around them.

        Raises:
            PassError: ONNX Runtime does not load the graph.
        """
        graph = ModelProto()
        graph.CopyFrom(floats)
        quantizers = _quantizers(floats, quantized)
        stored = {name: each for name, each in stored_constants(quantized).items() if each}
        names = {node.name for node in floats.graph.node}
        self.tensors = tuple(quantizers)
        self.weights = tuple(name for name in stored if name in names)
        switches = [(TENSOR, name) for name in self.tensors]
        switches += [(WEIGHTS, name) for name in self.weights]
        self._places = {switch: place for place, switch in enumerate(switches)}
        self._touched = {
            node.name: frozenset({*node.input, *node.output} & set(self.tensors))
            for node in floats.graph.node
        }
        _Switched(graph.graph, self._places).add(quantizers, stored)
        self._session = OrtSession(Artifact("onnx", graph), threads=1)

    def rounded(self, nodes: Iterable[str]) -> frozenset[str]:
        """Return the activations that are rounded where these nodes run on integers."""
        return frozenset().union(*(self._touched.get(name, frozenset()) for name in nodes))

    def run(
        self, feeds: Feeds, *, tensors: Iterable[str] = (), weights: Iterable[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs with these activations and these nodes' constants rounded."""
        on = np.zeros(max(1, len(self._places)), np.bool_)
        asked = [(TENSOR, name) for name in tensors] + [(WEIGHTS, name) for name in weights]
        on[[self._places[switch] for switch in asked if switch in self._places]] = True
        return self._session.run({**feeds, SWITCHES: on})


class _Switched:
    """Writes switches into a graph, in place."""

    def __init__(self, graph: Any, places: Mapping[Switch, int]) -> None:
        self._graph, self._places = graph, places
        self._nodes: list[NodeProto] = []

    def add(
        self,
        quantizers: Mapping[str, Quantizer],
        stored: Mapping[str, Mapping[int, NDArray[Any]]],
    ) -> None:
        count = max(1, len(self._places))
        switches = helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [count])
        given = {each.name for each in self._graph.input}
        renamed = {
            name: self._rounded(name, f"{name}_switched", quantizers[name])
            for name in quantizers
            if name in given
        }
        for node in self._graph.node:
            self._write(node, renamed, quantizers, stored)
        self._graph.input.append(switches)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _write(
        self,
        node: NodeProto,
        renamed: Mapping[str, str],
        quantizers: Mapping[str, Quantizer],
        stored: Mapping[str, Mapping[int, NDArray[Any]]],
    ) -> None:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if (WEIGHTS, node.name) in self._places:
            for place, values in stored[node.name].items():
                node.input[place] = self._constant(node, place, values)
        self._nodes.append(node)
        for place, name in enumerate(node.output):
            if name in quantizers:
                node.output[place] = f"{name}_unrounded"
                self._rounded(node.output[place], name, quantizers[name], key=name)

    def _rounded(self, read: str, made: str, quantizer: Quantizer, *, key: str = "") -> str:
        """Append a switch between a tensor and its rounded form."""
        parameters = [f"{made}_switch_{part}" for part in ("scale", "zero_point")]
        for name, tensor in zip(parameters, quantizer, strict=True):
            self._store(name, tensor)
        integers, back = f"{made}_integers", f"{made}_rounded"
        self._nodes.append(helper.make_node("QuantizeLinear", [read, *parameters], [integers]))
        self._nodes.append(helper.make_node("DequantizeLinear", [integers, *parameters], [back]))
        return self._where((TENSOR, key or read), back, read, made)

    def _constant(self, node: NodeProto, place: int, values: NDArray[Any]) -> str:
        """Append a switch between a node's constant and its rounded form."""
        stem = f"{node.name}_constant_{place}"
        self._store(f"{stem}_rounded", numpy_helper.from_array(values))
        return self._where((WEIGHTS, node.name), f"{stem}_rounded", node.input[place], stem)

    def _where(self, key: Switch, rounded: str, exact: str, made: str) -> str:
        index, switch = f"{made}_index", f"{made}_switch"
        self._store(index, numpy_helper.from_array(np.array(self._places[key], np.int64)))
        self._nodes.append(helper.make_node("Gather", [SWITCHES, index], [switch], axis=0))
        self._nodes.append(helper.make_node("Where", [switch, rounded, exact], [made]))
        return made

    def _store(self, name: str, tensor: TensorProto) -> None:
        stored = self._graph.initializer.add()
        stored.CopyFrom(tensor)
        stored.name = name


def stored_constants(quantized: ModelProto) -> dict[str, dict[int, NDArray[Any]]]:
    """Return, by node and place of its input, the floats that stored integers stand for."""
    constants = {each.name: each for each in quantized.graph.initializer}
    undone = {
        node.output[0]: node
        for node in quantized.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    found: dict[str, dict[int, NDArray[Any]]] = {}
    for node in quantized.graph.node:
        for place, name in enumerate(node.input):
            if name in undone:
                arrays = [numpy_helper.to_array(constants[each]) for each in undone[name].input]
                found.setdefault(node.name, {})[place] = _dequantized(undone[name], arrays)
    return found


def _dequantized(node: NodeProto, arrays: list[NDArray[Any]]) -> NDArray[Any]:
    floats = dequantized(*arrays, **{each.name: each.i for each in node.attribute})
    assert floats is not None  # the quantizer writes no blocks
    return floats


def _quantizers(floats: ModelProto, quantized: ModelProto) -> dict[str, Quantizer]:
    """Return scale and zero point of activations.

    Where the tool has dropped a Relu or Clip that its range makes superfluous, the range is that of
    what comes out of it.
    """
    constants = {each.name: each for each in quantized.graph.initializer}
    known = {each.name for each in floats.graph.input} - {e.name for e in floats.graph.initializer}
    known |= {name for node in floats.graph.node for name in node.output}
    kept = {node.name for node in quantized.graph.node}
    dropped = {node.input[0]: node.output[0] for node in floats.graph.node if node.name not in kept}
    found: dict[str, Quantizer] = {}
    for node in quantized.graph.node:
        parameters = [constants.get(name) for name in node.input[1:3]]
        name = str(node.input[0]).removesuffix(OF_AN_OUTPUT) if node.input else ""
        if node.op_type != "QuantizeLinear" or name not in known or len(parameters) < 2:
            continue
        scale, zero = parameters
        if scale is not None and zero is not None and not scale.dims:
            while name in dropped:
                name = dropped[name]
            found.setdefault(name, (scale, zero))
    return found
