"""TensorRT: which graphs it takes, and how one becomes such a graph."""

from .legal import LAYERS, Precision, TensorRtConfig, TensorRtPass
from .linter import Finding, lint
from .sparse import sparse_layers

__all__ = [
    "LAYERS",
    "Finding",
    "Precision",
    "TensorRtConfig",
    "TensorRtPass",
    "lint",
    "sparse_layers",
]
