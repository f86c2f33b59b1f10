"""Weights that are stored as integers behind DequantizeLinear, turned into floats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from aigc_compress.passes.operators import all_nodes, is_integer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["fold_dequantized"]

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


def _values(node: ir.Node | None) -> NDArray[Any] | None:
    """Return (integers - zero_point) * scale, or None where they are not constant or in blocks."""
    assert node is not None
    tables = [_table(value) for value in node.inputs if value is not None]
    attributes = {name: each.value for name, each in node.attributes.items()}
    is_plain = not attributes.get("block_size") and not attributes.get("output_dtype")
    if not is_plain or any(table is None for table in tables):
        return None
    integers, scale, *zero_points = (table for table in tables if table is not None)
    if integers.dtype.kind not in "iu" or scale.ndim > 1:
        return None
    shape = [1] * integers.ndim
    if scale.ndim == 1 and integers.ndim:
        shape[attributes.get("axis", 1)] = -1
    moved = integers.astype(np.int64)
    for zero_point in zero_points:
        moved -= zero_point.astype(np.int64).reshape(shape)
    floats: NDArray[Any] = moved.astype(np.float32) * scale.reshape(shape)
    return floats.astype(scale.dtype)


def _table(value: ir.Value) -> NDArray[Any] | None:
    if value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()
