"""torch -> symmetric INT8 ONNX for TensorRT, tuned by Neural Compressor."""

from __future__ import annotations

from .autotuning import AutotunePass
from .config import AutotuneConfig, Ranges

__all__ = ["AutotuneConfig", "AutotunePass", "Ranges"]
