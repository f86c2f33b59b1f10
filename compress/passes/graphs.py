"""Look through a model's graphs, those inside If, Loop and Scan too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, shape_inference

from .operators import all_nodes

__all__ = [
    "FOLDABLE",
    "Shape",
    "all_graphs",
    "drop_unread",
    "free_stem",
    "graphs_of",
    "known_shapes",
    "sorted_nodes",
]

ARITHMETIC = ("Add", "Div", "Mul", "Sub")
SHAPING = (
    "Cast",
    "Concat",
    "Constant",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Shape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
FOLDABLE = frozenset((*ARITHMETIC, *SHAPING))  # make a constant of constants
Shape = tuple[int | None, ...]  # None is an axis that is not known


def graphs_of(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for inner in graphs_of(node):
            yield from all_graphs(inner)


def known_shapes(model: ModelProto) -> dict[str, Shape]:
    """Infer shapes from the model's inputs alone; None is an axis that is not known.

    Declared shapes further in are dropped first: exporters freeze axes there that are dynamic.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    for graph in all_graphs(copy.graph):
        del graph.value_info[:]
        for output in graph.output:
            output.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(copy)
    shapes: dict[str, Shape] = {}
    for graph in all_graphs(inferred.graph):
        for value in (*graph.input, *graph.value_info):
            shape = _shape(value)
            clashes = shapes.get(value.name, shape) != shape  # branches may share names
            shapes[value.name] = (None,) * len(shape) if clashes else shape
    return shapes


def _shape(value: Any) -> Shape:
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else None
        for dim in value.type.tensor_type.shape.dim
    )


def free_stem(model: ModelProto) -> str:
    """Return a beginning that no name of the model has."""
    names = {name for node in all_nodes(model.graph) for name in (*node.output, *node.input)}
    names |= {each.name for graph in all_graphs(model.graph) for each in graph.initializer}
    stem, count = "integer", 1
    while any(name.startswith(stem) for name in names):
        count += 1
        stem = f"integer{count}"
    return stem


def drop_unread(model: ModelProto, freed: set[str]) -> None:
    """Drop constants and their makers in place: the `freed` ones that nothing reads any more."""
    graphs = list(all_graphs(model.graph))
    is_done = False
    while not is_done:
        read = _names_read(model)
        is_done = True
        for graph in graphs:
            dead = [node for node in graph.node if _is_dead(node, freed, read)]
            for node in dead:
                freed.update(filter(None, node.input))
                graph.node.remove(node)
                is_done = False
    unread_anywhere = freed - _names_read(model)
    for graph in graphs:
        unread = unread_anywhere & {each.name for each in graph.initializer}
        _keep_others(graph.initializer, unread)
        _keep_others(graph.input, unread)  # before IR 4 an initializer was an input too


def _keep_others(stored: Any, unread: set[str]) -> None:
    kept = [each for each in stored if each.name not in unread]
    del stored[:]
    stored.extend(kept)


def _is_dead(node: NodeProto, freed: set[str], read: set[str]) -> bool:
    made = set(filter(None, node.output))
    return node.op_type in FOLDABLE and bool(made & freed) and not made & read


def _names_read(model: ModelProto) -> set[str]:
    read = {name for node in all_nodes(model.graph) for name in node.input}
    outputs = {each.name for graph in all_graphs(model.graph) for each in graph.output}
    return read | outputs


def sorted_nodes(model: ModelProto) -> ModelProto:
    """Sort the nodes as ONNX demands: tools append new ones, after an If that reads them."""
    import onnx_ir as ir

    graph = ir.from_proto(model)
    graph.graph.sort()
    return ir.to_proto(graph)
