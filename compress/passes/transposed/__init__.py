"""ConvTranspose as Convs: exact rewrites into operators that have integer kernels."""

from __future__ import annotations

from .forms import FORMS, FormName, Precision, multiplications, refusal, write_form
from .geometry import Axis, Geometry, read_geometry
from .interleave import Spelling
from .layer import Layer
from .lower import LowerConfig, LowerPass

__all__ = [
    "FORMS",
    "Axis",
    "FormName",
    "Geometry",
    "Layer",
    "LowerConfig",
    "LowerPass",
    "Precision",
    "Spelling",
    "multiplications",
    "read_geometry",
    "refusal",
    "write_form",
]
