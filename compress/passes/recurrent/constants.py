"""Find what is constant in a graph, in graphs around it, and behind Slice, Concat and the like."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper

from aigc_compress.passes.graphs import FOLDABLE

__all__ = ["Constants"]

OLDEST_WITH_FREE_INITIALIZERS = 4  # IR version; before, every initializer was an input as well


class Constants:
    """The constant values that nodes of a graph can read, by name.

    Args:
        graph: where the nodes stand.
        opset: version of ONNX's own operators.
        ir_version: of the model; from 4 on an initializer that is an input too may be overridden.
        outer: the constants of the graph around it.
    """

    def __init__(
        self, graph: GraphProto, *, opset: int, ir_version: int, outer: Constants | None = None
    ) -> None:
        self._outer = outer
        self._opset = opset
        self._ir_version = ir_version
        self._inputs = {each.name for each in graph.input}
        self._stored = {each.name: each for each in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._known: dict[str, NDArray[Any] | None] = {}

    def inside(self, graph: GraphProto) -> Constants:
        """Return the constants of a graph inside this one."""
        return Constants(graph, opset=self._opset, ir_version=self._ir_version, outer=self)

    def get(self, name: str) -> NDArray[Any] | None:
        """Return a value that is the same at every run, or None."""
        if name not in self._known:
            self._known[name] = self._find(name) if name else None
        return self._known[name]

    def _find(self, name: str) -> NDArray[Any] | None:
        if name in self._inputs and not self._is_fixed(name):
            return None
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name])
        if name in self._makers:
            return self._evaluate(self._makers[name], name)
        return self._outer.get(name) if self._outer else None

    def _is_fixed(self, name: str) -> bool:
        return name in self._stored and self._ir_version < OLDEST_WITH_FREE_INITIALIZERS

    def _evaluate(self, node: NodeProto, name: str) -> NDArray[Any] | None:
        """Run one node of `FOLDABLE` whose inputs are constants."""
        if node.op_type not in FOLDABLE or node.domain not in ("", "ai.onnx"):
            return None
        feeds = {each: self.get(each) for each in node.input if each}
        if any(value is None for value in feeds.values()):
            return None
        from onnx.reference import ReferenceEvaluator

        opsets = [helper.make_opsetid("", self._opset)]
        inputs = [helper.make_tensor_value_info(each, 0, None) for each in feeds]
        outputs = [helper.make_tensor_value_info(name, 0, None)]
        graph = helper.make_graph([node], "constant", inputs, outputs)
        model = helper.make_model(graph, opset_imports=opsets)
        (value,) = ReferenceEvaluator(model).run(None, feeds)
        return np.asarray(value)
