"""Inferred shapes of inner tensors, stored where running the graph does not contradict them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import ModelProto, ValueInfoProto

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.passes.graphs import graphs_of
from aigc_compress.passes.operators import all_nodes
from aigc_compress.task import Feeds

__all__ = ["store_shapes", "without_shapes"]


def store_shapes(model: ModelProto, feeds: Sequence[Feeds]) -> tuple[ModelProto, int]:
    """Infer the shapes of inner tensors anew and keep those that hold on all feeds.

    What was stored before is dropped, since a stale shape misleads every tool that reads it. So are
    names of axes that no input has: inference does not promise that they are one size.

    Returns:
        The graph, and how many shapes are stored, or were dropped where none is.
    """
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph.value_info
    constants = {each.name for each in bare.graph.initializer}
    known = [each for each in inferred if each.name not in constants and _has_shape(each)]
    for each in feeds:
        sizes = _named_sizes(model, each)
        seen = _shapes_seen(bare, known, each)
        known = [value for value in known if _holds(value, seen[value.name], sizes)]
    bare.graph.value_info.extend(known)
    return bare, len(known) or len(model.graph.value_info)


def without_shapes(model: ModelProto) -> ModelProto:
    """Return a copy that declares the shapes of its inputs alone.

    Exporters declare wrong ones for outputs and inner tensors, and a rewriter believes them.
    """
    bare = ModelProto()
    bare.CopyFrom(model)
    inner = (graph for node in all_nodes(bare.graph) for graph in graphs_of(node))
    for graph in (bare.graph, *inner):
        del graph.value_info[:]
        for output in graph.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")
    return bare


def _has_shape(value: ValueInfoProto) -> bool:
    kind = value.type
    return bool(kind.HasField("tensor_type") and kind.tensor_type.HasField("shape"))


def _named_sizes(model: ModelProto, feeds: Feeds) -> dict[str, int]:
    """Return the sizes of named axes; a name that stands for several (`?`) is left out."""
    sizes: dict[str, set[int]] = {}
    for value in model.graph.input:
        given = feeds[value.name].shape if value.name in feeds else ()
        for dim, size in zip(value.type.tensor_type.shape.dim, given, strict=False):
            if dim.dim_param:
                sizes.setdefault(dim.dim_param, set()).add(size)
    return {name: min(seen) for name, seen in sizes.items() if len(seen) == 1}


def _shapes_seen(
    model: ModelProto, values: Sequence[ValueInfoProto], feeds: Feeds
) -> dict[str, tuple[int, ...]]:
    """Run the graph with inner tensors as outputs and return their shapes by name."""
    probe = ModelProto()
    probe.CopyFrom(model)
    outputs = {each.name for each in model.graph.output}
    for value in values:
        if value.name not in outputs:
            kind = value.type.tensor_type.elem_type
            probe.graph.output.append(onnx.helper.make_tensor_value_info(value.name, kind, None))
    found = OrtSession(Artifact("onnx", probe), threads=1).run(feeds)
    return {name: array.shape for name, array in found.items()}


def _holds(value: ValueInfoProto, shape: tuple[int, ...], sizes: Mapping[str, int]) -> bool:
    """Compare an inferred shape with the one seen; clears what says nothing about a size."""
    dims = value.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        return False
    for dim, size in zip(dims, shape, strict=True):
        if (dim.dim_param and dim.dim_param not in sizes) or dim.dim_value < 0:
            dim.Clear()
        wanted = sizes[dim.dim_param] if dim.dim_param else dim.dim_value
        if (dim.dim_param or dim.HasField("dim_value")) and wanted != size:
            return False
    return True
