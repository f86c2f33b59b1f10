"""INT8 for recurrent layers: ONNX Runtime's integer LSTM, and a GRU made of integer products."""

from __future__ import annotations

from .replace import quantize_recurrent

__all__ = ["quantize_recurrent"]
