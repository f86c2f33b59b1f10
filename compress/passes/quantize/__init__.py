"""INT8 for ONNX graphs: static Q/DQ with calibrated ranges, dynamic for LSTM, GRU and MatMul."""

from .config import Mode, QuantizeConfig
from .quantization import QuantizePass

__all__ = ["Mode", "QuantizeConfig", "QuantizePass"]
