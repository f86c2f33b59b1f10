"""Rewrite rules that take channel maps into the weights of the linear operator beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from .affine import Layout, read_affine
from .linear import LINEAR, Linear, read_linear

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnxscript.rewriter import RewriteRule

__all__ = ["absorb_affine", "absorb_batch_norm"]

# Forms of a channel map: operator, and index of its constant operand.
ELEMENTWISE = (
    ("Mul", 1),
    ("Mul", 0),
    ("Add", 1),
    ("Add", 0),
    ("Sub", 1),
    ("Sub", 0),
    ("Div", 1),
)
BATCH_NORM = (("BatchNormalization", 1),)
SMALL_ELEMENTS = 4096  # weights up to this size may be copied for one of several readers


def absorb_batch_norm(model: ModelProto) -> tuple[ModelProto, int]:
    """Take BatchNormalization into the operator before or after it; return how many went."""
    return _absorb(model, BATCH_NORM)


def absorb_affine(model: ModelProto) -> tuple[ModelProto, int]:
    """Take Mul, Add, Sub and Div by constants per channel in too; return how many went.

    BatchNormalization is tried once more, since these stood between it and its neighbour.
    """
    return _absorb(model, (*ELEMENTWISE, *BATCH_NORM))


def _absorb(model: ModelProto, forms: Sequence[tuple[str, int]]) -> tuple[ModelProto, int]:
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass
    from onnxscript.rewriter import RewriteRuleSet

    graph = ir.from_proto(model)
    rules = [_after(linear, *form) for linear in LINEAR for form in forms]
    rules += [_before(linear, *form) for linear in LINEAR for form in forms]
    total = 0
    while count := RewriteRuleSet(rules).apply_to_model(graph):
        total += count
    if not total:
        return model, 0
    RemoveUnusedNodesPass()(graph)
    return ir.to_proto(graph), total


def _after(linear: str, affine: str, constant_at: int) -> RewriteRule:
    """Return the rule affine(linear(x)) -> linear(x)."""
    from onnxscript.rewriter import RewriteRule

    def pattern(op: Any, x: Any, table: Any) -> Any:
        made = getattr(op, linear)(x, _allow_other_inputs=True, _outputs=["linear"])
        return _apply(op, affine, made, table, constant_at)

    def replacement(op: Any, *, x: ir.Value, linear: ir.Value, mapped: ir.Value, **_: Any) -> Any:
        node, affine_node = _maker(linear), _maker(mapped)
        found = read_linear(node)
        if found is None or _is_shared(node.inputs[1]):
            return None
        given = read_affine(affine_node, found.outputs, constant_at=constant_at)
        return None if given is None else _write(op, x, node, found.then(given), mapped)

    return RewriteRule(pattern, replacement, name=f"{affine} after {linear}")


def _before(linear: str, affine: str, constant_at: int) -> RewriteRule:
    """Return the rule linear(affine(x)) -> linear(x)."""
    from onnxscript.rewriter import RewriteRule

    def pattern(op: Any, x: Any, table: Any) -> Any:
        mapped = _apply(op, affine, x, table, constant_at)
        return getattr(op, linear)(mapped, _allow_other_inputs=True, _outputs=["linear"])

    def replacement(
        op: Any, *, x: ir.Value, linear: ir.Value, mapped: ir.Value, table: ir.Value | None
    ) -> Any:
        node = _maker(linear)
        found = read_linear(node)
        if found is None or _is_shared(node.inputs[1]):
            return None
        if table is not None and not _keeps_shape(table, x, found.inputs):
            return None
        given = read_affine(_maker(mapped), found.inputs, constant_at=constant_at)
        taken_in = None if given is None else found.after(given)
        return None if taken_in is None else _write(op, x, node, taken_in, linear)

    return RewriteRule(pattern, replacement, name=f"{affine} before {linear}")


def _apply(op: Any, affine: str, x: Any, table: Any, constant_at: int) -> Any:
    """Return the pattern of a channel map of x."""
    if affine == "BatchNormalization":
        return op.BatchNormalization(x, _allow_other_inputs=True, _outputs=["mapped"])
    operands = (x, table) if constant_at == 1 else (table, x)
    return getattr(op, affine)(*operands, _outputs=["mapped"])


def _keeps_shape(table: ir.Value, x: ir.Value, layout: Layout) -> bool:
    """Whether an operand leaves x as large as it is: it could stretch an axis of size 1."""
    if table.const_value is not None and table.const_value.size == 1:
        return True
    if x.shape is None or layout.rank != len(x.shape):
        return False
    return bool(x.shape[layout.axis] == layout.channels)


def _is_shared(weights: ir.Value | None) -> bool:
    """Whether other nodes read the weights too, so that a changed copy would add to the graph."""
    if weights is None or weights.const_value is None:
        return True
    return len(weights.uses()) > 1 and weights.const_value.size > SMALL_ELEMENTS


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _write(op: Any, x: ir.Value, node: ir.Node, linear: Linear, output: ir.Value) -> Any:
    """Write the node anew with other weights, or return None where their dtype cannot hold them."""
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    dtype = node.inputs[1].const_value.dtype.numpy()
    tables = {"weight": linear.weights.reshape(linear.shape)}
    if linear.bias is not None:
        tables["bias"] = linear.bias
    with np.errstate(over="ignore"):
        cast = {kind: table.astype(dtype) for kind, table in tables.items()}
    if not all(np.isfinite(each.astype(np.float64)).all() for each in cast.values()):
        return None
    attributes = {name: each for name, each in node.attributes.items() if name != "beta"}
    kind = node.op_type
    if kind == "MatMul" and linear.bias is not None:
        if linear.rank != 2:
            return None
        kind = "Gemm"
    values = [_stored(op, node, f"{output.name}_{part}", table) for part, table in cast.items()]
    return op.op(kind, x, *values, _name=node.name, **attributes)


def _stored(op: Any, node: ir.Node, name: str, table: NDArray[Any]) -> ir.Value:
    """Return a new initializer; the rewriter would overwrite one of the same name."""
    import onnx_ir as ir

    taken = node.graph.initializers if isinstance(node.graph, ir.Graph) else {}
    while name in taken:
        name += "_"
    stored: ir.Value = op.initializer(ir.tensor(table), name=name)
    return stored
