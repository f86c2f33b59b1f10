"""The edge half: load a compressed model with numpy and ONNX Runtime alone."""

from .model import Model, load

__all__ = ["Model", "load"]
