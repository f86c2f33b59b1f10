"""The rewrites of the fold pass: each takes a graph and returns it with a count of what it did."""

from .absorb import absorb_affine, absorb_batch_norm
from .activations import name_activations
from .constants import fold_constants, inline_functions
from .dequantize import dequantized, fold_dequantized
from .reshaping import fix_reshapes
from .rules import apply_rules, rewrite_with_onnxscript
from .shapes import store_shapes
from .tidy import (
    drop_dead_ends,
    make_weights_constant,
    raise_opset,
    rewrite_with_onnxruntime,
    share_duplicates,
)

__all__ = [
    "absorb_affine",
    "absorb_batch_norm",
    "apply_rules",
    "dequantized",
    "drop_dead_ends",
    "fix_reshapes",
    "fold_constants",
    "fold_dequantized",
    "inline_functions",
    "make_weights_constant",
    "name_activations",
    "raise_opset",
    "rewrite_with_onnxruntime",
    "rewrite_with_onnxscript",
    "share_duplicates",
    "store_shapes",
]
