"""The table of passes; to add one, write its file and name it here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .activations import ActivationsConfig, ActivationsPass
from .autotune import AutotuneConfig, AutotunePass
from .base import Context, Pass
from .dequantize import DequantizeConfig, DequantizePass
from .export import ExportConfig, ExportPass
from .fold import FoldConfig, FoldPass
from .openvino import OpenVinoConfig, OpenVinoPass
from .prune import PruneConfig, PrunePass
from .quantize import Mode, QuantizeConfig, QuantizePass
from .share import ShareConfig, SharePass
from .sparsify import SparsifyConfig, SparsifyPass
from .store import StoreConfig, StorePass
from .tensorrt import TensorRtConfig, TensorRtPass
from .training import DistillConfig, DistillPass, FinetuneConfig, FinetunePass
from .transposed import LowerConfig, LowerPass

__all__ = [
    "PASSES",
    "ActivationsConfig",
    "AutotuneConfig",
    "Context",
    "DequantizeConfig",
    "DistillConfig",
    "ExportConfig",
    "FinetuneConfig",
    "FoldConfig",
    "LowerConfig",
    "Mode",
    "OpenVinoConfig",
    "Pass",
    "PruneConfig",
    "QuantizeConfig",
    "ShareConfig",
    "SparsifyConfig",
    "StoreConfig",
    "TensorRtConfig",
]

PASSES: Mapping[str, Any] = {
    each.name: each
    for each in (
        ActivationsPass(),
        AutotunePass(),
        DequantizePass(),
        DistillPass(),
        ExportPass(),
        FinetunePass(),
        FoldPass(),
        LowerPass(),
        OpenVinoPass(),
        PrunePass(),
        QuantizePass(),
        SharePass(),
        SparsifyPass(),
        StorePass(),
        TensorRtPass(),
    )
}
