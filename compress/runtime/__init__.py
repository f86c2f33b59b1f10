"""The edge half: load a compressed model with numpy and ONNX Runtime alone."""

from .adaptive import Adaptive, Policy
from .batching import Batcher
from .bundle import Bundle, Check
from .kinds import Classifier, Guess, Images, Writer
from .loading import load
from .model import Model

__all__ = [
    "Adaptive",
    "Batcher",
    "Bundle",
    "Check",
    "Classifier",
    "Guess",
    "Images",
    "Model",
    "Policy",
    "Writer",
    "load",
]
