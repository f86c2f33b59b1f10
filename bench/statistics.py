"""From paired blocks to a ratio, its confidence interval and a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Percentile", "RatioInterval", "Verdict", "paired_speedup", "percentile_interval"]

Verdict = Literal["faster", "slower", "no difference shown"]
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class RatioInterval:
    """How many times faster than the baseline: above 1 is faster.

    Attributes:
        ratio: latency of the baseline over that of the candidate, the median over paired blocks.
        low: lower end of the confidence interval.
        high: upper end.
        confidence: how often such intervals cover the truth, at least.
    """

    ratio: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    @property
    def verdict(self) -> Verdict:
        """Return `faster` or `slower` only where the interval leaves 1 out."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference shown"

    @property
    def half_width(self) -> float:
        """Return how far the interval reaches from the ratio, as a share of the ratio."""
        return self.high / self.ratio - 1


@dataclass(frozen=True)
class Percentile:
    """A percentile of single calls in milliseconds; the ends are None where n is too small."""

    value: float
    low: float | None
    high: float | None


def paired_speedup(
    baseline: NDArray[np.float64],
    candidate: NDArray[np.float64],
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> RatioInterval:
    """Return the median ratio of paired blocks with a confidence interval.

    A block of the baseline is paired with the block of the candidate that was timed in the same
    round, so slow spells of the machine cancel out; the speed-up is the median of their ratios. The
    standard error of its logarithm comes from a hierarchical bootstrap: processes are drawn with
    replacement, then blocks within each. With few processes a percentile interval is too narrow:
    when all three of three processes happen to favour one side, which chance alone does in a
    quarter of all runs, it would leave 1 out. So the error is multiplied by sqrt(n / (n - 1)) and
    by Student's t with n - 1 degrees of freedom, n being the number of processes (Hesterberg 2015,
    "What Teachers Should Know About the Bootstrap", section 5). With a single process n is the
    number of blocks, and differences between processes are not covered.

    The ratio of the two medians, the plainer statistic, finds fewer of the true differences on the
    same times: processes of one model differ by chance, and it does not pair them.

    Args:
        baseline: milliseconds per call, float64 (processes, blocks).
        candidate: the same of the candidate, same shape.
        seed: of the resampling.
        confidence: of the interval.

    Raises:
        ValueError: the shapes differ, or there is a single block in a single process.
    """
    from scipy import stats

    if baseline.shape != candidate.shape or baseline.ndim != 2 or baseline.size < 2:
        raise ValueError(f"paired blocks needed, not {baseline.shape} and {candidate.shape}")
    processes, blocks = baseline.shape
    rng = np.random.default_rng(seed)
    process = rng.integers(processes, size=(RESAMPLES, processes, 1))
    block = rng.integers(blocks, size=(RESAMPLES, processes, blocks))
    logs = np.log(baseline) - np.log(candidate)
    drawn = np.median(logs[process, block], axis=(1, 2))
    count = processes if processes > 1 else blocks
    t = float(stats.t.ppf(0.5 + confidence / 2, count - 1))
    margin = float(drawn.std()) * math.sqrt(count / (count - 1)) * t
    point = float(np.median(logs))
    low, high = math.exp(point - margin), math.exp(point + margin)
    return RatioInterval(math.exp(point), low, high, confidence)


def percentile_interval(samples_ms: NDArray[np.float64], percent: float) -> Percentile:
    """Return a percentile with its distribution-free 95 % interval from order statistics.

    The number of samples below the true percentile is binomial, so the interval reaches from the
    order statistic at its 2.5 % quantile to that at its 97.5 % quantile (David & Nagaraja 2003,
    section 7.1). With fewer than 36 samples for P90, 72 for P95 and 368 for P99 the upper end does
    not exist, and both ends are None.

    Args:
        samples_ms: float64 (n,), milliseconds of single calls.
        percent: between 0 and 100.
    """
    from scipy import stats

    ordered = np.sort(samples_ms)
    count, share = len(ordered), percent / 100
    low = int(stats.binom.ppf((1 - CONFIDENCE) / 2, count, share))
    high = int(stats.binom.ppf((1 + CONFIDENCE) / 2, count, share))
    value = float(np.percentile(ordered, percent))
    if high >= count or low < 1:
        return Percentile(value, None, None)
    return Percentile(value, float(ordered[low - 1]), float(ordered[high]))
