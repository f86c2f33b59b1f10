"""From paired blocks to a ratio, its confidence interval and a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["RatioInterval", "Verdict", "ratio_of_medians"]

Verdict = Literal["faster", "slower", "no difference shown"]
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class RatioInterval:
    """How many times faster than the baseline: above 1 is faster.

    Attributes:
        ratio: median latency of the baseline over that of the candidate.
        low: lower end of the 95 % confidence interval.
        high: upper end.
    """

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """Return `faster` or `slower` only where the interval leaves 1 out."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference shown"


def ratio_of_medians(
    baseline: NDArray[np.float64], candidate: NDArray[np.float64], *, seed: int = 0
) -> RatioInterval:
    """Return the ratio of median latencies with a hierarchical bootstrap interval.

    Processes are drawn with replacement, then blocks within each; a block of the baseline stays
    with the block of the candidate that was timed in the same round, so slow spells of the
    machine cancel out (percentile bootstrap, Efron & Tibshirani 1993, chapters 8 and 13).

    Args:
        baseline: milliseconds per call, float64 (processes, blocks).
        candidate: the same of the candidate, same shape.
        seed: of the resampling.
    """
    if baseline.shape != candidate.shape or baseline.ndim != 2:
        raise ValueError(f"paired blocks needed, not {baseline.shape} and {candidate.shape}")
    processes, blocks = baseline.shape
    rng = np.random.default_rng(seed)
    process = rng.integers(processes, size=(RESAMPLES, processes, 1))
    block = rng.integers(blocks, size=(RESAMPLES, processes, blocks))
    drawn = _ratio(baseline[process, block], candidate[process, block], axis=(1, 2))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    point = float(_ratio(baseline, candidate, axis=(0, 1)))
    return RatioInterval(point, float(low), float(high))


def _ratio(
    baseline: NDArray[np.float64], candidate: NDArray[np.float64], *, axis: tuple[int, ...]
) -> NDArray[np.float64]:
    return np.asarray(np.median(baseline, axis=axis) / np.median(candidate, axis=axis))
