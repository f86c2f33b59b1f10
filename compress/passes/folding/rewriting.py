"""Take nodes out of a graph and put others in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Writer", "rewrite", "standing"]


def rewrite(model: ModelProto, change: Callable[[ir.Graph], int]) -> tuple[ModelProto, int]:
    """Let `change` work on the main graph, with dtypes and shapes inferred.

    Returns:
        The changed graph and the count that `change` returned; the graph as it came where it is 0.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    known = {each.name for each in model.graph.value_info}
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    count = change(graph.graph)
    if not count:
        return model, 0
    RemoveUnusedNodesPass()(graph)
    changed = ir.to_proto(graph)
    kept = [each for each in changed.graph.value_info if each.name in known]
    del changed.graph.value_info[:]
    changed.graph.value_info.extend(kept)
    return changed, count


def standing(graph: ir.Graph, *, backwards: bool = False) -> Iterator[ir.Node]:
    """Yield the nodes of ONNX's own that still stand in a graph when their turn comes."""
    nodes = [node for node in graph if node.domain in ("", "ai.onnx")]
    for node in reversed(nodes) if backwards else nodes:
        if node.graph is graph:
            yield node


class Writer:
    """Writes the nodes that make a value anew.

    Attributes:
        nodes: those written so far, in order.
    """

    def __init__(self, graph: ir.Graph, target: ir.Value) -> None:
        """Prepare to write what makes `target` of float32."""
        self._graph, self._target = graph, target
        self.nodes: list[ir.Node] = []

    def add(
        self, op: str, *inputs: ir.Value | float, attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        """Append an operator of one output and return that; a number becomes a constant."""
        import onnx_ir as ir

        values = [each if isinstance(each, ir.Value) else self._constant(each) for each in inputs]
        name = self._free(f"{self._target.name}_{op}")
        node = ir.node(op, values, dict(attributes or {}), name=name)
        made: ir.Value = node.outputs[0]
        made.name = name
        made.type = self._target.type
        self.nodes.append(node)
        return made

    def replace(self, old: Sequence[ir.Node]) -> None:
        """Put the nodes in the place of `old`, the first of which makes the target."""
        import onnx_ir as ir

        ir.convenience.replace_nodes_and_values(
            self._graph,
            old[0],
            list(old),
            self.nodes,
            [self._target],
            [self.nodes[-1].outputs[0]],
        )
        self.nodes[-1].name = old[0].name or self.nodes[-1].name

    def _constant(self, number: float) -> ir.Value:
        import onnx_ir as ir

        name = self._free(f"{self._target.name}_number")
        table = ir.tensor(np.array(number, np.float32), name=name)
        value = ir.Value(name=name, const_value=table)
        value.type, value.shape = ir.TensorType(table.dtype), ir.Shape(())
        self._graph.register_initializer(value)
        return value

    def _free(self, wanted: str) -> str:
        """Return a name that nothing in the graph has."""
        taken = {value.name for node in self._graph.all_nodes() for value in node.outputs}
        taken |= {node.name for node in self._graph.all_nodes()} | {*self._graph.initializers}
        taken |= {each.name for each in self._graph.inputs} | {node.name for node in self.nodes}
        while wanted in taken:
            wanted += "_"
        return wanted
