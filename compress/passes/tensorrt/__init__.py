"""TensorRT: which graphs it takes, and how one becomes such a graph."""

from .legal import Precision, TensorRtConfig, TensorRtPass, layer_names
from .linter import Finding, lint

__all__ = ["Finding", "Precision", "TensorRtConfig", "TensorRtPass", "layer_names", "lint"]
