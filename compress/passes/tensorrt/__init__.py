"""TensorRT: which graphs it takes, and how one becomes such a graph."""

from .float8 import OLDEST_OPSET
from .legal import LAYERS, PRECISIONS, QUANTIZED, Precision, TensorRtConfig, TensorRtPass
from .linter import Finding, lint
from .sparse import sparse_layers

__all__ = [
    "LAYERS",
    "OLDEST_OPSET",
    "PRECISIONS",
    "QUANTIZED",
    "Finding",
    "Precision",
    "TensorRtConfig",
    "TensorRtPass",
    "lint",
    "sparse_layers",
]
