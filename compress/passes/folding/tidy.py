"""What changes how a graph is written, not what it computes: inputs, opset, leftovers, shapes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import ModelProto

from aigc_compress.engines.ort import optimize_offline
from aigc_compress.passes.operators import all_nodes

__all__ = [
    "drop_dead_ends",
    "make_weights_constant",
    "nodes_gone",
    "raise_opset",
    "rewrite_with_onnxruntime",
    "share_duplicates",
]

OLDEST_IR_WITHOUT_INPUTS = 4  # before it every initializer had to be an input too
STANDARD = ("", "ai.onnx")


def make_weights_constant(model: ModelProto) -> tuple[ModelProto, int]:
    """Take the initializers off the list of inputs, where a caller could overwrite them.

    Returns:
        The graph, of IR version 4 at least, and how many inputs went.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveInitializersFromInputsPass

    constants = {each.name for each in model.graph.initializer}
    count = sum(each.name in constants for each in model.graph.input)
    if not count:
        return model, 0
    graph = ir.from_proto(model)
    RemoveInitializersFromInputsPass()(graph)
    changed = ir.to_proto(graph)
    changed.ir_version = max(changed.ir_version, OLDEST_IR_WITHOUT_INPUTS)
    return changed, count


def raise_opset(model: ModelProto, opset: int) -> tuple[ModelProto, int]:
    """Convert a graph up to an opset; return by how many versions it rose."""
    from onnx import version_converter

    current = max((o.version for o in model.opset_import if o.domain in STANDARD), default=opset)
    if current >= opset:
        return model, 0
    return version_converter.convert_version(model, opset), opset - current


def rewrite_with_onnxruntime(model: ModelProto) -> tuple[ModelProto, int]:
    """Apply ONNX Runtime's basic level; return how many nodes went."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        optimize_offline(model.SerializeToString(), path, level="basic")
        rewritten = onnx.load(path)
    return rewritten, nodes_gone(model, rewritten)


def nodes_gone(before: ModelProto, after: ModelProto) -> int:
    """Return how many nodes of the graph before, by type, are not there any more."""
    types = [Counter(node.op_type for node in all_nodes(each.graph)) for each in (before, after)]
    return (types[0] - types[1]).total()


def drop_dead_ends(model: ModelProto) -> tuple[ModelProto, int]:
    """Drop nodes, initializers and operator domains that no output needs; return how many."""
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

    graph = ir.from_proto(model)
    for tidy in (RemoveUnusedNodesPass(), RemoveUnusedOpsetsPass()):
        tidy(graph)
    return _if_smaller(model, ir.to_proto(graph))


def share_duplicates(model: ModelProto) -> tuple[ModelProto, int]:
    """Keep one of every set of equal initializers, and of equal nodes; return how many went."""
    import onnx_ir as ir
    from onnx_ir.passes.common import (
        CommonSubexpressionEliminationPass,
        DeduplicateInitializersPass,
        NameFixPass,
    )

    graph = ir.from_proto(model)
    for tidy in (
        DeduplicateInitializersPass(size_limit=2**31),
        CommonSubexpressionEliminationPass(),
        NameFixPass(),
    ):
        tidy(graph)
    return _if_smaller(model, ir.to_proto(graph))


def _if_smaller(before: ModelProto, after: ModelProto) -> tuple[ModelProto, int]:
    """Return the graph after and how many parts it has less; the one before if it has no less."""
    count = _parts(before) - _parts(after)
    return (after, count) if count > 0 else (before, 0)


def _parts(model: ModelProto) -> int:
    nodes = sum(1 for _ in all_nodes(model.graph))
    initializers = len(model.graph.initializer)
    return nodes + initializers + len(model.opset_import)
