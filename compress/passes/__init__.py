"""The table of passes; to add one, write its file and name it here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .activations import ActivationsConfig, ActivationsPass
from .autotune import AutotuneConfig, AutotunePass
from .base import Context, Pass
from .export import ExportConfig, ExportPass
from .fold import FoldConfig, FoldPass
from .quantize import Mode, QuantizeConfig, QuantizePass
from .transposed import LowerConfig, LowerPass

__all__ = [
    "PASSES",
    "ActivationsConfig",
    "AutotuneConfig",
    "Context",
    "ExportConfig",
    "FoldConfig",
    "LowerConfig",
    "Mode",
    "Pass",
    "QuantizeConfig",
]

PASSES: Mapping[str, Any] = {
    each.name: each
    for each in (
        ActivationsPass(),
        AutotunePass(),
        ExportPass(),
        FoldPass(),
        LowerPass(),
        QuantizePass(),
    )
}
