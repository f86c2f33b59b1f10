"""List what TensorRT would refuse of a graph, without TensorRT and without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from onnx import GraphProto, ModelProto, NodeProto, shape_inference

from ..graphs import all_graphs, graphs_of
from ..recurrent.constants import Constants
from .rules import Look, attributes_of, object_to

__all__ = ["Finding", "lint"]


@dataclass(frozen=True)
class Finding:
    """A node that TensorRT would refuse.

    Attributes:
        node: its name, or that of its first output.
        op: its operator.
        reason: the rule.
        help: what would help.
        stage: who refuses, its parser or its builder.
    """

    node: str
    op: str
    reason: str
    help: str
    stage: Literal["parser", "builder"]


def lint(model: ModelProto) -> list[Finding]:
    """Return every node of a graph, and of those inside it, that TensorRT would refuse."""
    try:
        inferred = shape_inference.infer_shapes(model)
    except shape_inference.InferenceError:  # types that are not known are not objected to
        inferred = model
    dtypes, shapes = _types(inferred)
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 1)
    constants = Constants(model.graph, opset=opset, ir_version=model.ir_version)
    inputs = frozenset(each.name for each in model.graph.input)
    findings = []
    for node, known in _nodes(model.graph, constants):
        look = Look(node, known, dtypes, shapes, inputs, attributes_of(node))
        objection = object_to(look)
        if objection is not None:
            name = node.name or next(iter(node.output), "")
            findings.append(Finding(name, node.op_type, **asdict(objection)))
    return findings


def _types(model: ModelProto) -> tuple[dict[str, int], dict[str, tuple[int | None, ...]]]:
    """Return element types and shapes by name; a name that graphs inside others share has none."""
    dtypes: dict[str, int] = {}
    shapes: dict[str, tuple[int | None, ...]] = {}
    shared = set()
    for graph in all_graphs(model.graph):
        own: dict[str, tuple[int | None, ...]] = {}
        for each in (*graph.input, *graph.value_info, *graph.output):
            tensor = each.type.tensor_type
            dtypes[each.name] = tensor.elem_type
            if tensor.HasField("shape"):
                own[each.name] = tuple(
                    dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim
                )
        for stored in graph.initializer:
            dtypes[stored.name] = stored.data_type
            own[stored.name] = tuple(stored.dims)
        shared |= {name for name, shape in own.items() if shapes.get(name, shape) != shape}
        shapes |= own
    return dtypes, {name: shape for name, shape in shapes.items() if name not in shared}


def _nodes(graph: GraphProto, constants: Constants) -> Iterator[tuple[NodeProto, Constants]]:
    for node in graph.node:
        yield node, constants
        for inner in graphs_of(node):
            yield from _nodes(inner, constants.inside(inner))
