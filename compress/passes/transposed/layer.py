"""A ConvTranspose with its weights, as the forms take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .geometry import Geometry

__all__ = ["Layer"]


@dataclass(frozen=True)
class Layer:
    """A ConvTranspose with its weights.

    Attributes:
        geometry: its whole numbers.
        weight: (inputs, outputs / group, kernel...), float32 or float64.
        bias: (outputs,) of the same dtype, or None.
        sizes: spatial sizes of its input; None where an axis is dynamic.
    """

    geometry: Geometry
    weight: NDArray[Any]
    bias: NDArray[Any] | None
    sizes: tuple[int | None, ...]
