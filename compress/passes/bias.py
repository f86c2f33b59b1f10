"""Take the mean error out of a quantized graph's layers by shifting their biases.

Rounded weights and clipped activations move the mean of a channel, and a moved mean adds up from
layer to layer where noise averages out. Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.2 (eq. 15 to 17), in its empirical form: the shift is
the mean difference to the float graph on calibration feeds. Layers are corrected from the inputs
on, so that each is measured behind corrected ones.

Where a layer's outputs go through Relu or Clip, the mean is taken over those alone that it hands
on, as they are in the float graph: an error below zero harms nobody, and a shift that makes up for
it moves what stands above. On the reference cnn the plain mean costs 10 dB, this one gains 7.7.

It is one more candidate, no sure gain: where ranges clip a good part of a long tail, what is lost
is not a shift. Compare the outputs with and without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from aigc_compress.errors import PassError, UsageError
from aigc_compress.task import Feeds, OnStep

from .operators import all_nodes, with_node_names
from .probe import Probe

__all__ = ["correct_biases"]

Floats = NDArray[np.float64]
Layer = tuple[str, str]  # operator and node name

LAYERS = ("Conv", "ConvTranspose", "Gemm")
GATES = ("Clip", "LeakyRelu", "Relu")
INT32 = np.iinfo(np.int32)


def correct_biases(
    float_model: ModelProto,
    quantized_model: ModelProto,
    feeds: Iterable[Feeds],
    *,
    on_step: OnStep | None = None,
) -> tuple[ModelProto, tuple[str, ...]]:
    """Return the quantized graph with biases shifted by the mean error of each output channel.

    It runs both graphs over all feeds once for each layer of a chain, layers beside each other
    together. A bias is shifted where it is a constant of one value per channel that one layer
    reads, float or int32 behind DequantizeLinear (as ONNX Runtime's `QDQQuantizer` writes it);
    other layers stay as they are.

    Args:
        float_model: what the other was made of; layers pair up by operator and node name.
        quantized_model: a graph with QuantizeLinear and DequantizeLinear.
        feeds: calibration feeds that can be iterated more than once.
        on_step: called with (done, total) runs over the feeds.

    Returns:
        The graph, and the names of the layers whose biases were shifted.

    Raises:
        UsageError: the feeds are an iterator, which can be iterated once only.
        PassError: there are no feeds, or ONNX Runtime does not run a graph.
    """
    if iter(feeds) is feeds:
        raise UsageError("The feeds are an iterator; bias correction goes over them several times.")
    corrected = _sorted_copy(quantized_model)
    named = with_node_names(float_model)
    partners = _outputs_by_layer(named)
    gates = _gates(named)
    stages = list(_stages(corrected.graph, partners))
    tables = {each.name: each for each in corrected.graph.initializer}
    shifted: list[str] = []
    for done, stage in enumerate(stages, 1):
        pairs = [_Pair(bias.output, partners[bias.layer], gates.get(bias.layer)) for bias in stage]
        errors = _mean_errors(named, corrected, pairs, feeds)
        shifted += [
            bias.layer[1] for bias in stage if bias.shift(tables[bias.table], -errors[bias.output])
        ]
        if on_step is not None:
            on_step(done, len(stages))
    return corrected, tuple(shifted)


@dataclass(frozen=True)
class _Pair:
    """A layer's output in both graphs.

    Attributes:
        output: its name in the quantized graph.
        partner: its name in the float graph.
        gate: what goes into the Relu or Clip behind it, and what comes out, in the float graph.
    """

    output: str
    partner: str
    gate: tuple[str, str] | None


@dataclass(frozen=True)
class _Bias:
    """One bias that can be shifted.

    Attributes:
        layer: the layer that reads it.
        output: the layer's output.
        table: name of the initializer that holds it.
        step: what one unit of the initializer is worth in the output, (1,) or (channels,).
    """

    layer: Layer
    output: str
    table: str
    step: Floats

    def shift(self, tensor: TensorProto, amount: Floats) -> bool:
        """Shift its initializer by an amount per channel, in place; return whether that fits it."""
        values = numpy_helper.to_array(tensor)
        if values.size != amount.size:
            return False
        moved = values.astype(np.float64) + (amount / self.step).reshape(values.shape)
        if values.dtype == np.int32:
            moved = np.clip(np.rint(moved), INT32.min, INT32.max)
        tensor.CopyFrom(numpy_helper.from_array(moved.astype(values.dtype), tensor.name))
        return True


def _sorted_copy(model: ModelProto) -> ModelProto:
    """Return a copy with its nodes in the order that ONNX demands; ONNX Runtime's tool does not."""
    import onnx_ir as ir

    graph = ir.from_proto(model)
    graph.graph.sort()
    return ir.to_proto(graph)


def _outputs_by_layer(model: ModelProto) -> dict[Layer, str]:
    nodes = (node for node in model.graph.node if node.op_type in LAYERS)
    return {(node.op_type, node.name): node.output[0] for node in nodes}


def _stages(graph: GraphProto, known: Mapping[Layer, str]) -> Iterator[list[_Bias]]:
    """Yield the biases of known layers by how many of these stand before them, the first first."""
    find = _BiasFinder(graph)
    depths: dict[str, int] = {}
    stages: dict[int, list[_Bias]] = {}
    for node in graph.node:
        depth = max((depths.get(name, 0) for name in node.input), default=0)
        bias = find(node) if (node.op_type, node.name) in known else None
        if bias is not None:
            depth += 1
            stages.setdefault(depth, []).append(bias)
        depths.update(dict.fromkeys(node.output, depth))
    for depth in sorted(stages):
        yield stages[depth]


class _BiasFinder:
    """Finds where the bias of a layer is stored."""

    def __init__(self, graph: GraphProto) -> None:
        self._tables = {each.name: each for each in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers = Counter(name for node in all_nodes(graph) for name in node.input)
        self._readers.update(each.name for each in graph.output)

    def __call__(self, node: NodeProto) -> _Bias | None:
        """Return the layer's bias, or None where it has none that can be shifted."""
        beta = _beta(node)
        if len(node.input) < 3 or self._readers[node.input[2]] != 1 or not beta:
            return None
        layer, output, name = (node.op_type, node.name), node.output[0], node.input[2]
        table = self._tables.get(name)
        if table is not None and table.data_type == TensorProto.FLOAT:
            return _Bias(layer, output, name, np.array([beta]))
        maker = self._makers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        table, scale = (self._tables.get(each) for each in maker.input[:2])
        if table is None or scale is None or self._readers[table.name] != 1:
            return None
        if table.data_type != TensorProto.INT32:
            return None
        step = numpy_helper.to_array(scale).astype(np.float64).ravel()
        return _Bias(layer, output, table.name, step * beta)


def _beta(node: NodeProto) -> float:
    """Return the factor on the bias; only Gemm has one."""
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return float(given.get("beta", 1.0))


def _gates(model: ModelProto) -> dict[Layer, tuple[str, str]]:
    """Return by layer the input and output of the activation that alone reads its output.

    An Add may stand between, which hands an error on as it is.
    """
    readers: dict[str, list[NodeProto]] = {}
    for node in all_nodes(model.graph):
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for layer, name in _outputs_by_layer(model).items():
        reader = _only(readers.get(name))
        while reader is not None and reader.op_type == "Add":
            reader = _only(readers.get(reader.output[0]))
        if reader is not None and reader.op_type in GATES:
            found[layer] = reader.input[0], reader.output[0]
    return found


def _only(nodes: Sequence[NodeProto] | None) -> NodeProto | None:
    return nodes[0] if nodes is not None and len(nodes) == 1 else None


def _mean_errors(
    float_model: ModelProto,
    quantized: ModelProto,
    pairs: Sequence[_Pair],
    feeds: Iterable[Feeds],
) -> dict[str, Floats]:
    """Return by output the mean error per channel, axis 1, over all that is handed on."""
    wanted = {name: None for pair in pairs for name in (pair.partner, *(pair.gate or ()))}
    probes = Probe(float_model, list(wanted)), Probe(quantized, [pair.output for pair in pairs])
    sums: dict[str, Floats] = {}
    counts: dict[str, Floats] = {}
    for each in feeds:
        floats, found = (dict(probe.run(each)) for probe in probes)
        for pair in pairs:
            total, count = _summed(floats, found, pair)
            sums[pair.output] = sums.get(pair.output, 0.0) + total
            counts[pair.output] = counts.get(pair.output, 0.0) + count
    if not counts:
        raise PassError("Bias correction needs calibration feeds, and there are none.")
    return {name: total / np.maximum(counts[name], 1) for name, total in sums.items()}


def _summed(
    floats: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]], pair: _Pair
) -> tuple[Floats, Floats]:
    """Return the sum of the errors that are handed on, and their number, by channel."""
    errors = found[pair.output] - floats[pair.partner]
    is_handed_on = np.ones(errors.shape, np.bool_)
    if pair.gate is not None:
        before, behind = (floats[name] for name in pair.gate)
        if before.shape == errors.shape:  # an Add may have stretched it
            is_handed_on = before == behind
    others = tuple(axis for axis in range(errors.ndim) if axis != 1)
    total = np.where(is_handed_on, errors, 0).sum(axis=others, dtype=np.float64)
    return total, is_handed_on.sum(axis=others, dtype=np.float64)
