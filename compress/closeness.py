"""How close two arrays or sets of outputs are: noise in dB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_DB", "agreement_db", "lowest_agreement_db", "sqnr_db"]

MOST_DB = 200.0  # float64 itself resolves no more; equal arrays count as this


def sqnr_db(reference: NDArray[Any], value: NDArray[Any]) -> float:
    """Return the signal-to-quantization-noise ratio, 10 log10(sum r^2 / sum (r - v)^2), in dB.

    Infinities and NaN must stand at the same places in both; the ratio is taken over the rest. The
    result lies in [-200, 200]: 200 for equal arrays, -200 where shapes or those places differ.
    """
    pair = _finite_parts(reference, value)
    if pair is None:
        return -MOST_DB
    r, v = pair
    noise, signal = float(((r - v) ** 2).sum()), float((r**2).sum())
    if noise == 0:
        return MOST_DB
    return float(np.clip(10 * np.log10(signal / noise), -MOST_DB, MOST_DB)) if signal else -MOST_DB


def _finite_parts(
    reference: NDArray[Any], value: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the finite entries of both, or None where shapes or places of the others differ."""
    if reference.shape != value.shape:
        return None
    r, v = reference.astype(np.float64), value.astype(np.float64)
    finite = np.isfinite(r)
    if not np.array_equal(r[~finite], v[~finite], equal_nan=True):
        return None
    r, v = r[finite], v[finite]
    return (r, v) if np.isfinite(v).all() else None


def agreement_db(reference: NDArray[Any], value: NDArray[Any]) -> float:
    """Return the SQNR of floats; for other dtypes -10 log10 of the share of entries that differ.

    The latter is 20 dB where one entry in a hundred differs, 200 where none does.
    """
    if np.issubdtype(reference.dtype, np.floating):
        return sqnr_db(reference, value)
    if reference.shape != value.shape:
        return -MOST_DB
    differ = float((reference != value).mean()) if reference.size else 0.0
    return float(-10 * np.log10(differ)) if differ else MOST_DB


def lowest_agreement_db(
    references: Sequence[Mapping[str, NDArray[Any]]], values: Sequence[Mapping[str, NDArray[Any]]]
) -> float:
    """Return the lowest agreement over all sets of outputs and names."""
    return min(
        agreement_db(reference[name], value[name])
        for reference, value in zip(references, values, strict=True)
        for name in reference
    )
