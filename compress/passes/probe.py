"""Look at inner tensors of a graph while it runs, as many at a time as memory allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TypeProto

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.task import Feeds

__all__ = ["Probe", "exposing", "inferred_types"]

MOST_BYTES = 2**28
UNKNOWN_BYTES = 2**20  # of a tensor whose shape cannot be inferred


class Probe:
    """Runs a graph and yields named tensors of its main graph, inputs or made by its nodes.

    The tensors are cut into groups of at most MOST_BYTES, by the shapes of the first feeds; each
    group is a session of its own, so memory does not grow with the number of tensors.
    """

    def __init__(self, model: ModelProto, names: Sequence[str]) -> None:
        made = {name for node in model.graph.node for name in node.output}
        self._model = model
        self._made = [name for name in names if name in made]
        self._given = [name for name in names if name not in made]
        self._sessions: list[OrtSession] = []

    def run(self, feeds: Feeds) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield names and values, each name once.

        Raises:
            PassError: ONNX Runtime does not load or run the graph.
        """
        if not self._sessions:
            groups = _groups(self._made, inferred_types(self._model, feeds))
            graphs = [exposing(self._model, group) for group in groups]
            self._sessions = [OrtSession(Artifact("onnx", each), threads=1) for each in graphs]
        for session in self._sessions:
            yield from session.run(feeds).items()
        for name in self._given:
            yield name, feeds[name]


def exposing(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return the graph with the named tensors as its only outputs, and no node more than needed."""
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = ir.from_proto(model)
    values = {value.name: value for node in graph.graph for value in node.outputs}
    graph.graph.outputs.clear()
    graph.graph.outputs.extend(values[name] for name in names)
    RemoveUnusedNodesPass()(graph)
    return ir.to_proto(graph)


def inferred_types(model: ModelProto, feeds: Feeds | None = None) -> dict[str, TypeProto]:
    """Return the types of tensors, as far as known; shapes are those for the feeds, if given."""
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.input:
        if feeds is not None and value.name in feeds:
            kind, shape = value.type.tensor_type.elem_type, feeds[value.name].shape
            value.type.CopyFrom(onnx.helper.make_tensor_type_proto(kind, shape))
    graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    return {each.name: each.type for each in (*graph.input, *graph.value_info, *graph.output)}


def _groups(names: Sequence[str], types: Mapping[str, TypeProto]) -> list[list[str]]:
    """Cut the names, in their order, into groups of at most MOST_BYTES."""
    groups: list[list[str]] = []
    left = 0
    for name in names:
        size = _size_bytes(types.get(name))
        if not groups or size > left:
            groups.append([])
            left = MOST_BYTES
        groups[-1].append(name)
        left -= size
    return groups


def _size_bytes(kind: TypeProto | None) -> int:
    if kind is None or not kind.tensor_type.HasField("shape"):
        return UNKNOWN_BYTES
    dims = kind.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        return UNKNOWN_BYTES
    return 4 * math.prod(int(dim.dim_value) for dim in dims)
