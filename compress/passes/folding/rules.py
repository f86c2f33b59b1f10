"""onnxscript's rewrite rules, less those that change what a graph computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import ModelProto

from .constants import fold_in_place, lift_initializers
from .shapes import without_shapes
from .tidy import nodes_gone

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["apply_rules", "rewrite_with_onnxscript"]

# The default rules of onnxscript 0.7 in its order, less these: those that drop `x + 0`, `x - 0`,
# `x * 1` and `x / 1` take 1e-8 for 0 and 1.00001 for 1, so that log(x + 1e-10) becomes log(x);
# ONNX Runtime drops the exact ones. The one that makes a Split of two Slices writes an attribute
# that came with opset 18, and rounds sizes the wrong way.
RULES = (
    "dropout_zero_rule",
    "dropout_inference_rule",
    "two_reshapes_matmul_reshape_rule",
    "one_reshape_matmul_reshape_rule",
    "cast_constant_of_shape_rule",
    "cast_constant_of_shape_without_value_rule",
    "collapse_slice_rule",
    "collapse_slice2_rule",
    "materialize_reshape_shape_rule",
    "min_min_rule",
    "max_max_rule",
    "min_max_rule",
    "max_min_rule",
    "successive_clip_relu_rule",
    "successive_relu_clip_rule",
    "successive_relu_rule",
    "successive_clip_rule",
    "cast_cast_rule",
    "no_op_cast_rule",
    "no_op_expand_rule",
    "flatten_to_reshape_rule",
    "reshape_reshape_rule",
    "no_op_transpose_rule",
    "transpose_transpose_rule",
    "unsqueeze_unsqueeze_rule",
    "squeeze_reshape_1d_rule",
    "no_op_dynamic_scatter_nd_rule",
    "no_op_static_scatter_nd_rule",
    "normalize_pad_format_conv_rule",
    "normalize_pad_format_conv_integer_rule",
    "fuse_pad_into_conv_rule",
    "fuse_pad_into_conv_integer_rule",
    "fuse_batchnorm_into_conv_rule",
    "fuse_batchnorm_into_conv_transpose_rule",
    "fuse_batchnorm_into_gemm_rule",
    "remove_optional_bias_from_conv_rule",
    "remove_optional_bias_from_conv_transpose_rule",
    "remove_optional_bias_from_qlinear_conv_rule",
    "remove_optional_bias_from_gemm_rule",
)
ROUNDS = 2


def rewrite_with_onnxscript(model: ModelProto) -> tuple[ModelProto, int]:
    """Apply the rules; return how many nodes went."""
    import onnx_ir as ir

    graph = ir.from_proto(without_shapes(model))
    apply_rules(graph)
    rewritten = ir.to_proto(graph)
    return rewritten, nodes_gone(model, rewritten)


def apply_rules(graph: ir.Model) -> None:
    """Inline functions, fold constants of any size and apply the rules, in place."""
    from onnx_ir.passes.common import (
        CommonSubexpressionEliminationPass,
        DeduplicateInitializersPass,
        InlinePass,
        OutputFixPass,
    )
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules import common

    rules = RewriteRuleSet([getattr(common, name) for name in RULES])
    InlinePass()(graph)
    for _ in range(ROUNDS):
        fold_in_place(graph)
        rules.apply_to_model(graph)
    lift_initializers(graph)
    DeduplicateInitializersPass()(graph)
    CommonSubexpressionEliminationPass()(graph)
    OutputFixPass()(graph)
