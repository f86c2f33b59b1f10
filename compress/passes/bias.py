"""Take the mean error out of a quantized graph's layers by shifting their biases.

Rounded weights and clipped activations move the mean of a channel, and a moved mean adds up from
layer to layer where noise averages out. Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.2 (eq. 15 to 17), in its empirical form: the shift is
the mean difference to the float graph on calibration feeds. Layers are corrected from the inputs
on, so that each is measured behind corrected ones.

It is one more candidate, no sure gain. Means are restored layer by layer, but where ranges clip a
good part of a long tail, what is lost is not a shift: moving every value by the mean of what a few
lost then adds up to more harm than the clipping. Compare the outputs with and without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from aigc_compress.errors import PassError, UsageError
from aigc_compress.task import Feeds, OnStep

from .operators import all_nodes, with_node_names
from .probe import Probe

__all__ = ["correct_biases"]

Floats = NDArray[np.float64]

LAYERS = ("Conv", "ConvTranspose", "Gemm")
INT32 = np.iinfo(np.int32)


def correct_biases(
    float_model: ModelProto,
    quantized_model: ModelProto,
    feeds: Iterable[Feeds],
    *,
    on_step: OnStep | None = None,
) -> ModelProto:
    """Return the quantized graph with biases shifted by the mean error of each output channel.

    It runs the quantized graph over all feeds once for each layer of a chain, layers beside each
    other together, and the float graph once. A bias is shifted where it is a constant of one value
    per channel that one layer reads, float or int32 behind DequantizeLinear (as ONNX Runtime's
    `QDQQuantizer` writes it); other layers stay as they are.

    Args:
        float_model: what the other was made of; layers pair up by operator and node name.
        quantized_model: a graph with QuantizeLinear and DequantizeLinear.
        feeds: calibration feeds that can be iterated more than once.
        on_step: called with (done, total) runs over the feeds.

    Raises:
        UsageError: the feeds are an iterator, which can be iterated once only.
        PassError: there are no feeds, or ONNX Runtime does not run a graph.
    """
    if iter(feeds) is feeds:
        raise UsageError("The feeds are an iterator; bias correction goes over them several times.")
    corrected = _sorted_copy(quantized_model)
    partners = _outputs_by_layer(with_node_names(float_model))
    stages = list(_stages(corrected.graph, partners))
    if not stages:
        return corrected
    total = len(stages) + 1
    names = [partners[bias.layer] for stage in stages for bias in stage]
    wanted = _channel_means(float_model, names, feeds)
    _tell(on_step, 1, total)
    for done, stage in enumerate(stages, 2):
        found = _channel_means(corrected, [bias.output for bias in stage], feeds)
        tables = {each.name: each for each in corrected.graph.initializer}
        for bias in stage:
            error = found[bias.output] - wanted[partners[bias.layer]]
            bias.shift(tables[bias.table], -error)
        _tell(on_step, done, total)
    return corrected


@dataclass(frozen=True)
class _Bias:
    """One bias that can be shifted.

    Attributes:
        layer: operator and node name of the layer that reads it.
        output: the layer's output.
        table: name of the initializer that holds it.
        step: what one unit of the initializer is worth in the output, (1,) or (channels,).
    """

    layer: tuple[str, str]
    output: str
    table: str
    step: Floats

    def shift(self, tensor: TensorProto, amount: Floats) -> None:
        """Shift the values of its initializer, in place; `amount` is per channel, (channels,)."""
        values = numpy_helper.to_array(tensor)
        if values.size != amount.size:
            return
        moved = values.astype(np.float64) + (amount / self.step).reshape(values.shape)
        if values.dtype == np.int32:
            moved = np.clip(np.rint(moved), INT32.min, INT32.max)
        tensor.CopyFrom(numpy_helper.from_array(moved.astype(values.dtype), tensor.name))


def _sorted_copy(model: ModelProto) -> ModelProto:
    """Return a copy with its nodes in the order that ONNX demands; ONNX Runtime's tool does not."""
    import onnx_ir as ir

    graph = ir.from_proto(model)
    graph.graph.sort()
    return ir.to_proto(graph)


def _outputs_by_layer(model: ModelProto) -> dict[tuple[str, str], str]:
    nodes = (node for node in model.graph.node if node.op_type in LAYERS)
    return {(node.op_type, node.name): node.output[0] for node in nodes}


def _stages(graph: GraphProto, known: Mapping[tuple[str, str], str]) -> Iterator[list[_Bias]]:
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


def _channel_means(
    model: ModelProto, names: Sequence[str], feeds: Iterable[Feeds]
) -> dict[str, Floats]:
    """Return the means of tensors over all axes but the channels', axis 1, and over all feeds."""
    probe = Probe(model, names)
    sums: dict[str, Floats] = {}
    counts: Counter[str] = Counter()
    for each in feeds:
        for name, values in probe.run(each):
            channels = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
            sums[name] = sums.get(name, 0) + channels.sum(axis=1, dtype=np.float64)
            counts[name] += channels.shape[1]
    if not all(counts[name] for name in names):
        raise PassError("Bias correction needs calibration feeds, and there are none.")
    return {name: total / counts[name] for name, total in sums.items()}


def _tell(on_step: OnStep | None, done: int, total: int) -> None:
    if on_step is not None:
        on_step(done, total)
