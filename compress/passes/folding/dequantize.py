"""Weights that are stored as integers behind DequantizeLinear, turned into floats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from aigc_compress.passes.operators import all_nodes, is_integer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["dequantized", "fold_dequantized"]

BORDERS = ("QuantizeLinear", "DynamicQuantizeLinear")


def fold_dequantized(model: ModelProto) -> tuple[ModelProto, int]:
    """Turn stored integers into floats where nothing in the graph runs on integers.

    ONNX Runtime 1.32 leaves DequantizeLinear of a constant in the graph that it runs, so weights
    stored so are converted on every call. Those of a MatMul stay: it fuses the two into
    MatMulNBits. onnxscript does not fold them, since onnx 1.23 evaluates the operator from opset 19
    on only.
    """
    types = {node.op_type for node in all_nodes(model.graph)}
    if any(op in BORDERS or is_integer(op) for op in types):
        return model, 0
    return _fold(model) if "DequantizeLinear" in types else (model, 0)


def _fold(model: ModelProto) -> tuple[ModelProto, int]:
    import onnx_ir as ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass
    from onnxscript.rewriter import RewriteRule, RewriteRuleSet

    def pattern(op: Any, integers: Any) -> Any:
        return op.DequantizeLinear(integers, _allow_other_inputs=True, _outputs=["floats"])

    def replacement(op: Any, *, floats: ir.Value, **_: Any) -> Any:
        is_fused = any(node.op_type == "MatMul" for node in floats.consumers())
        values = None if is_fused else _values(floats.producer())
        return None if values is None else op.op("Constant", value=ir.tensor(values))

    graph = ir.from_proto(model)
    count = RewriteRuleSet([RewriteRule(pattern, replacement)]).apply_to_model(graph)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    RemoveUnusedNodesPass()(graph)
    return ir.to_proto(graph), count


def dequantized(
    integers: NDArray[Any],
    scale: NDArray[Any],
    zero_point: NDArray[Any] | None = None,
    *,
    axis: int = 1,
    **others: int,
) -> NDArray[Any] | None:
    """Return (integers - zero_point) * scale along an axis, as ONNX's DequantizeLinear defines it.

    Args:
        integers: of any shape.
        scale: a scalar or (n,), with n the size of the axis.
        zero_point: like the scale; None: 0.
        axis: that scales differ along.
        others: further attributes of the operator.

    Returns:
        An array of the scale's dtype, or None where scales hold for blocks, the output has another
        dtype, or the input is no array of integers.
    """
    is_plain = not others.get("block_size") and not others.get("output_dtype")
    if not is_plain or integers.dtype.kind not in "iu" or scale.ndim > 1:
        return None
    shape = [1] * integers.ndim
    if scale.size > 1:
        shape[axis] = -1
    moved = integers.astype(np.int64)
    if zero_point is not None:
        moved -= zero_point.astype(np.int64).reshape(shape)
    floats: NDArray[Any] = moved.astype(np.float32) * scale.reshape(shape)
    return floats.astype(scale.dtype)


def _values(node: ir.Node | None) -> NDArray[Any] | None:
    """Return what a DequantizeLinear makes, or None where its inputs are not constant."""
    assert node is not None
    tables = [_table(value) for value in node.inputs if value is not None]
    known = [table for table in tables if table is not None]
    if len(known) < len(tables):
        return None
    attributes = {name: each.value for name, each in node.attributes.items()}
    return dequantized(*known, **attributes)


def _table(value: ir.Value) -> NDArray[Any] | None:
    if value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()
