"""What is remembered of a tensor's values: extremes, counts and a histogram of constant size.

Bins are [i w, (i + 1) w) for whole i, where the width w is a power of two, so zero lies on an edge.
The width is the smallest at which BINS bins or fewer hold all values; where the values outgrow it,
bin i goes into bin i >> n, which is exact. What is remembered therefore depends on the values
alone, not on their order or on how they came in pieces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Observed"]

BINS = 4096
INDEX_BITS = 30  # a bin's index stays below 2^30, also where all values are nearly the same
LEAST_EXPONENT = -1000
PIECE = 65_536  # values at a time: their float64 copies stay in the cache


def _no_bins() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Observed:
    """What is known of the values of one tensor.

    Attributes:
        low: the smallest finite value; infinity before there is one.
        high: the largest finite value; minus infinity before there is one.
        count: number of finite values.
        zeros: how many of them are exactly zero; these are in no bin.
        not_finite: number of infinities and NaN.
        exponent: bins are 2^exponent wide.
        first: index of the first bin, which begins at first * 2^exponent.
        bins: int64 (B,), number of values in each bin; B <= BINS.
        dtype: of the tensor, as numpy names it.
    """

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    zeros: int = 0
    not_finite: int = 0
    exponent: int = LEAST_EXPONENT
    first: int = 0
    bins: NDArray[np.int64] = field(default_factory=_no_bins)
    dtype: str = "float32"

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins, float64 (B + 1,); the outermost are the extremes of the values."""
        indices = np.arange(self.first, self.first + self.bins.size + 1, dtype=np.float64)
        return np.clip(np.ldexp(indices, self.exponent), self.low, self.high)

    def including(self, values: NDArray[Any]) -> Observed:
        """Return what is known after more values, of any shape."""
        flat = values.ravel()
        finite = _finite(flat)
        found = replace(
            self, not_finite=self.not_finite + flat.size - finite.size, dtype=values.dtype.name
        )
        if not finite.size:
            return found
        found = found._reaching(float(finite.min()), float(finite.max()))
        zeros = finite.size - int(np.count_nonzero(finite))
        bins = found.bins + found._counted(finite)
        if zeros:
            bins[-found.first] -= zeros
        return replace(found, count=found.count + finite.size, zeros=found.zeros + zeros, bins=bins)

    def quantile(self, share: float) -> float:
        """Return the value that a share of all values does not exceed, to within one bin.

        Args:
            share: in [0, 1]; 0 gives the smallest value's bin.

        Raises:
            ValueError: there are no finite values.
        """
        if not self.count:
            raise ValueError("There are no values, so no quantile.")
        counts, left, right = self.bins, self.edges[:-1], self.edges[1:]
        if self.zeros:
            counts = np.insert(counts, -self.first, self.zeros)
            left, right = (np.insert(ends, -self.first, 0.0) for ends in (left, right))
        wanted = min(max(share * self.count, 1.0), float(self.count))
        below = np.cumsum(counts)
        at = int(np.searchsorted(below, wanted))
        part = (wanted - below[at] + counts[at]) / counts[at]
        return float(left[at] + part * (right[at] - left[at]))

    def _reaching(self, low: float, high: float) -> Observed:
        """Return the same values in bins that reach from `low` to `high` too."""
        if self.low <= low and high <= self.high:
            return self
        low, high = min(self.low, low), max(self.high, high)
        exponent = _narrowest(low, high, at_least=self.exponent)
        first, last = (_index(end, exponent) for end in (low, high))
        shift = min(exponent - self.exponent, 62)  # numpy's >> ends at 63
        places = np.arange(self.first, self.first + self.bins.size) >> shift
        bins = np.zeros(last - first + 1, np.int64)
        np.add.at(bins, places - first, self.bins)
        return replace(self, low=low, high=high, exponent=exponent, first=first, bins=bins)

    def _counted(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Return how many of the values, zeros included, fall into each bin."""
        counts = np.zeros(self.bins.size, np.int64)
        for start in range(0, values.size, PIECE):
            piece = values[start : start + PIECE].astype(np.float64)
            indices = np.floor(piece * 2.0**-self.exponent) - self.first
            counts += np.bincount(indices.astype(np.intp), minlength=counts.size)
        return counts


def _finite(flat: NDArray[Any]) -> NDArray[Any]:
    """Return the finite entries, without a copy where all are."""
    if flat.size and np.isfinite([flat.min(), flat.max()]).all():
        return flat
    finite: NDArray[Any] = flat[np.isfinite(flat)]
    return finite


def _narrowest(low: float, high: float, *, at_least: int) -> int:
    """Return the smallest exponent, of those from `at_least` on, at which BINS bins are enough."""
    largest = max(abs(low), abs(high))
    if not largest:
        return at_least
    exponent = max(math.frexp(largest)[1] - INDEX_BITS, at_least)
    while _index(high, exponent) - _index(low, exponent) >= BINS:
        exponent += 1
    return exponent


def _index(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))
