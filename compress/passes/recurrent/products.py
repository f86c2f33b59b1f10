"""Products with constant weights: on integers with ranges measured at run time, or on floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from aigc_compress.passes.draft import MICROSOFT, Draft

__all__ = ["Products"]

Floats = NDArray[np.float32]
FULL_RANGE, REDUCED_RANGE = 127, 64


@dataclass(frozen=True)
class Products:
    """How activations are multiplied with constant weights.

    Attributes:
        is_integer: u8 x s8 products; False keeps floats, which shows that a rewrite is exact.
        per_channel: one weight scale per output column instead of one per matrix.
        reduce_range: weights within [-64, 64], so that two u8 x s8 products fit into int16: x86
            without VNNI adds them there, and saturates.
    """

    is_integer: bool = True
    per_channel: bool = True
    reduce_range: bool = False

    def multiply(
        self,
        draft: Draft,
        value: str,
        weight: Floats,
        *,
        bias: Floats | None = None,
        name: str,
    ) -> str:
        """Append value (..., K) x weight (K, M) + bias (M,) and return the name of (..., M).

        On integers the whole of `value` gets one scale and zero point at every call.
        """
        if not self.is_integer:
            product = draft.add("MatMul", value, draft.constant(weight, name))
            added = [draft.constant(bias, f"{name}_bias")] if _is_there(bias) else []
            return draft.add("Add", product, *added) if added else product
        integers, scale = self.quantize(weight)
        largest = scale.max()
        columns = scale / largest
        inputs = [
            value,
            draft.constant(integers, f"{name}_int8"),
            draft.constant(largest, f"{name}_scale"),
        ]
        if _is_there(bias):
            inputs += ["", draft.constant(bias / columns, f"{name}_bias")]  # the zero point is 0
        product = draft.add("DynamicQuantizeMatMul", *inputs, domain=MICROSOFT)
        if not self.per_channel:
            return product
        # Scales per column inside the operator take longer than a Mul behind it: ONNX Runtime
        # 1.32 runs a 2 x 512 GRU over 64 steps in 0.84 of the time this way.
        return draft.add("Mul", product, draft.constant(columns, f"{name}_columns"))

    def quantize(self, weight: Floats) -> tuple[NDArray[np.int8], Floats]:
        """Round weights (K, M) to symmetric integers with zero point 0.

        Returns:
            int8 (K, M) and float32 scales, (M,) per channel or () per matrix, with weight about
            integers * scales. No scale is below 1e-12 of the largest; a weight of zeros gets 1.
        """
        limit = REDUCED_RANGE if self.reduce_range else FULL_RANGE
        largest = np.abs(weight).max(axis=0 if self.per_channel else None) / limit
        scale = np.asarray(np.maximum(largest, largest.max() * 1e-12 or 1), np.float32)
        integers = np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8)
        return integers, scale


def _is_there(bias: Floats | None) -> TypeGuard[Floats]:
    return bias is not None and bool(bias.any())
