"""Constants become initializers, in the main graph and inside If, Loop and Scan."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from onnx import ModelProto

from aigc_compress.passes.operators import all_nodes

from .shapes import without_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_constants", "fold_in_place", "inline_functions", "lift_initializers"]

NO_LIMIT = 2**31
SMALL_ELEMENTS = 65_536  # a computed constant up to this size is stored whatever it is made of


def inline_functions(model: ModelProto) -> tuple[ModelProto, int]:
    """Replace calls of the model's own functions by their bodies; return how many it had."""
    import onnx_ir as ir
    from onnx_ir.passes.common import InlinePass

    if not model.functions:
        return model, 0
    graph = ir.from_proto(model)
    InlinePass()(graph)
    return ir.to_proto(graph), len(model.functions)


def fold_constants(model: ModelProto) -> tuple[ModelProto, int]:
    """Compute what hangs on constants alone; return how many nodes went.

    An If whose condition becomes constant is replaced by its branch on the way. Weights that are
    stored as integers behind DequantizeLinear stay so.
    """
    import onnx_ir as ir

    graph = ir.from_proto(without_shapes(model))
    _make_names_unique(graph)
    fold_in_place(graph)
    lift_initializers(graph)
    folded = ir.to_proto(graph)
    return folded, _count(model) - _count(folded)


def fold_in_place(graph: ir.Model) -> None:
    """Compute what hangs on constants alone, as far as that is worth storing."""
    from onnxscript.optimizer import fold_constants_ir

    fold_constants_ir(
        graph,
        onnx_shape_inference=True,
        input_size_limit=NO_LIMIT,
        output_size_limit=NO_LIMIT,
        should_fold=_is_worth_storing,
    )


def _make_names_unique(model: ir.Model) -> None:
    """Rename what has the same name in two inner graphs, in place.

    The folder of onnxscript 0.7 takes two branches into one graph and fails where their constants
    have one name.
    """
    taken: set[str] = set()
    for graph in model.graphs():
        made = (output for node in graph for output in node.outputs)
        for value in dict.fromkeys((*graph.inputs, *graph.initializers.values(), *made)):
            while value.name in taken:
                value.name = f"{value.name}_"
            if value.name:
                taken.add(value.name)


def lift_initializers(graph: ir.Model) -> None:
    """Make initializers of the main graph out of constants, in place, and drop what is unread."""
    from onnx_ir.passes.common import (
        LiftConstantsToInitializersPass,
        LiftSubgraphInitializersToMainGraphPass,
        NameFixPass,
        RemoveUnusedNodesPass,
    )

    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    LiftSubgraphInitializersToMainGraphPass()(graph)
    RemoveUnusedNodesPass()(graph)
    NameFixPass()(graph)


def _is_worth_storing(node: ir.Node) -> bool | None:
    """Tell the folder to leave what is far larger than its inputs; None is its own rule."""
    made = [value.shape for value in node.outputs]
    if any(shape is None or not shape.is_static() for shape in made):
        return None
    size = sum(prod(shape.numpy()) for shape in made if shape is not None)
    read = sum(
        value.const_value.size
        for value in node.inputs
        if value is not None and value.const_value is not None
    )
    return False if size > max(read, SMALL_ELEMENTS) else None


def _count(model: ModelProto) -> int:
    return sum(1 for _ in all_nodes(model.graph))
