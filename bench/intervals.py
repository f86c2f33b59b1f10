"""Measures with 95 % confidence intervals: shares of samples, and means over samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.task import Measure

from .statistics import CONFIDENCE

__all__ = ["mean_measure", "share_percent"]


def share_percent(hits: NDArray[np.bool_], *, higher_is_better: bool = True) -> Measure:
    """Return the share of true entries in percent, with Wilson's score interval.

    Wilson 1927, "Probable Inference": it stays within [0, 100] and does not close to a point where
    all samples hit. The samples must be independent.
    """
    from scipy import stats

    count, right = hits.size, int(hits.sum())
    ends = stats.binomtest(right, count).proportion_ci(CONFIDENCE, method="wilson")
    value, low, high = (100 * float(share) for share in (right / count, ends.low, ends.high))
    return Measure(value, higher_is_better, count, low, high)


def mean_measure(values: NDArray[Any], *, higher_is_better: bool) -> Measure:
    """Return the mean of independent values (n,), with Student's t interval.

    There is no interval for a single value, nor where a value is not finite.
    """
    from scipy import stats

    count, value = len(values), float(np.mean(values, dtype=np.float64))
    if count < 2 or not np.isfinite(values).all():
        return Measure(value, higher_is_better, count)
    error = float(np.std(values, ddof=1, dtype=np.float64)) / count**0.5
    margin = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * error
    return Measure(value, higher_is_better, count, value - margin, value + margin)
