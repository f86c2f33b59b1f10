"""A graph with some layers on integers: whole, with their weights alone, or activations alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.fake_quant import stored_constants
from aigc_compress.passes.operators import RECURRENT, all_nodes
from aigc_compress.passes.quantize.dynamic import quantize_dynamic
from aigc_compress.passes.quantize.static import integer_region, quantize_static
from aigc_compress.passes.recurrent import quantize_recurrent
from aigc_compress.passes.recurrent.products import Products
from aigc_compress.refine import with_only

from .sites import Site, identity

__all__ = ["Forms"]

HELD = "aigc_compress.held"  # a domain that no pass touches
LSTM_WEIGHTS = (1, 2)


@dataclass(frozen=True)
class Forms:
    """Makes the forms of one graph.

    Attributes:
        graph: of floats, the nodes of its main graph named.
        sites: its layers.
        config: how they are quantized.
        context: calibration feeds.
    """

    graph: ModelProto
    sites: Sequence[Site]
    config: QuantizeConfig
    context: Context
    _last: dict[tuple[str, ...], ModelProto] = field(default_factory=dict, init=False, repr=False)

    @property
    def everything(self) -> frozenset[str]:
        """All nodes that become integer when nothing is left out, passing ones too."""
        named = {name for site in self.sites for name in site.nodes}
        has_static = any(site.form == "static" for site in self.sites)
        return frozenset(named | {*(integer_region(self.graph) if has_static else ())})

    def with_settings(self, **settings: Any) -> Forms:
        """Return the forms under another scheme."""
        return replace(self, config=self.config.model_copy(update=settings))

    def integers(self, nodes: Collection[str]) -> ModelProto:
        """Return the graph with these nodes on integers, the others on floats.

        Raises:
            PassError: the tool refuses.
        """
        graph = self._static(nodes)
        recurrent = self._dynamic(nodes, RECURRENT)
        if recurrent:
            graph = self._with_recurrent(graph, recurrent)
        products = self._dynamic(nodes, ("MatMul",))
        return self._with_products(graph, products) if products else graph

    def weights(self, nodes: Collection[str]) -> ModelProto:
        """Return the graph of floats with the weights of these nodes rounded as they are stored."""
        rounded = _copy(self.graph)
        stored = stored_constants(self._static(nodes))
        for node in rounded.graph.node:
            for place, values in stored.get(node.name, {}).items():
                _set_constant(rounded, node, place, values)
        recurrent = self._dynamic(nodes, RECURRENT)
        products = self._dynamic(nodes, ("MatMul",))
        for node in all_nodes(rounded.graph):
            if identity(node) in recurrent | products:
                self._round_dynamic(rounded, node)
        return rounded

    def activations(self, nodes: Collection[str]) -> ModelProto | None:
        """Return the graph with these nodes' activations rounded, and weights of floats.

        None where there is an LSTM or GRU among them: what they round lives inside them.
        """
        if self._dynamic(nodes, RECURRENT):
            return None
        rounded = _copy(self._static(nodes))
        originals = {node.name: node for node in self.graph.graph.node}
        floats = {each.name: numpy_helper.to_array(each) for each in self.graph.graph.initializer}
        stored = stored_constants(rounded)
        for node in rounded.graph.node:
            for place in stored.get(node.name, {}):
                _set_constant(rounded, node, place, floats[originals[node.name].input[place]])
        _round_inputs(rounded, self._dynamic(nodes, ("MatMul",)))
        return rounded

    def _dynamic(self, nodes: Collection[str], operators: Iterable[str]) -> frozenset[str]:
        kinds = {*operators}
        dynamic = [site for site in self.sites if site.form == "dynamic" and site.kind in kinds]
        return frozenset(site.nodes[0] for site in dynamic if site.nodes[0] in nodes)

    def _static(self, nodes: Collection[str]) -> ModelProto:
        chosen = [name for name in integer_region(self.graph) if name in nodes]
        if not chosen:
            return self.graph
        key = tuple(chosen)
        if key not in self._last:  # all three forms of a layer begin here
            made, _ = quantize_static(self.graph, with_only(self.config, chosen), self.context)
            self._last.clear()
            self._last[key] = made
        return self._last[key]

    def _with_recurrent(self, graph: ModelProto, chosen: Collection[str]) -> ModelProto:
        held = _holding(graph, chosen)
        quantized, _ = quantize_recurrent(
            held, per_channel=self.config.per_channel, reduce_range=self.config.reduce_range
        )
        return _released(quantized)

    def _with_products(self, graph: ModelProto, chosen: Collection[str]) -> ModelProto:
        kept = [
            node.name
            for node in graph.graph.node
            if node.op_type == "MatMul" and identity(node) not in chosen
        ]
        config = self.config.model_copy(update={"keep_float": tuple(kept)})
        return _released(quantize_dynamic(_holding(graph, ()), config, self.context)[0])

    def _round_dynamic(self, model: ModelProto, node: NodeProto) -> None:
        products = Products(
            per_channel=self.config.per_channel, reduce_range=self.config.reduce_range
        )
        floats = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        for place in LSTM_WEIGHTS if node.op_type in RECURRENT else (1,):
            values = floats.get(node.input[place])
            if values is None:
                continue
            matrices = np.swapaxes(values, 1, 2) if values.ndim == 3 else values[None]
            rounded = np.stack([np.multiply(*products.quantize(each)) for each in matrices])
            back = np.swapaxes(rounded, 1, 2) if values.ndim == 3 else rounded[0]
            _set_constant(model, node, place, back.astype(np.float32))


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _holding(model: ModelProto, released: Collection[str]) -> ModelProto:
    """Return the graph with the recurrent nodes that are not named put out of any pass's reach."""
    held = _copy(model)
    for node in all_nodes(held.graph):
        if node.op_type in RECURRENT and identity(node) not in released:
            node.domain = HELD
    held.opset_import.add(domain=HELD, version=1)
    return held


def _released(model: ModelProto) -> ModelProto:
    released = _copy(model)
    for node in all_nodes(released.graph):
        if node.domain == HELD:
            node.domain = ""
    kept = [each for each in released.opset_import if each.domain != HELD]
    del released.opset_import[:]
    released.opset_import.extend(kept)
    return released


def _set_constant(model: ModelProto, node: NodeProto, place: int, values: NDArray[Any]) -> None:
    """Let a node read these values at that place."""
    name = f"{identity(node)}_input_{place}_rounded"
    node.input[place] = name
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))


def _round_inputs(model: ModelProto, chosen: Collection[str]) -> None:
    """Put a range measured at every call, and rounding to it, before the nodes' first inputs."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if identity(node) in chosen:
            stem = f"{identity(node)}_rounded"
            integers = [f"{stem}_{part}" for part in ("integers", "scale", "zero_point")]
            nodes.append(helper.make_node("DynamicQuantizeLinear", [node.input[0]], integers))
            nodes.append(helper.make_node("DequantizeLinear", integers, [stem]))
            node.input[0] = stem
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
