"""Where to clip the values of one tensor before they are rounded to integers.

A range becomes a grid of 2^bits points as ONNX Runtime makes it (`compute_scale_zp`): zero is one
of the points, so the grid may lie up to half a step beside the range. The expected squared error of
a grid is exact for values that are spread evenly inside each bin of a histogram.

References:
    Migacz 2017, "8-bit Inference with TensorRT": the entropy method.
    Banner et al. 2019, "Post training 4-bit quantization of convolutional networks for
    rapid-deployment": the least squared error as the measure of a clipping.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .histogram import BINS, Observed

__all__ = ["Clipping", "Ends"]

Floats = NDArray[np.float64]
Ends = tuple[float, float]

CANDIDATES = 64
NARROWEST = 1 / 256  # of the largest magnitude; eight bins or more are left inside
SPREADS = (0.3, 0.1, 0.03)  # how far each round of the search goes around the best ends so far
STEPS = 7
LEAST_STEP = float(np.finfo(np.float32).tiny)  # below it ONNX Runtime sets the scale to 1


@dataclass(frozen=True)
class Clipping:
    """Ways to clip the values of one tensor, and what each costs.

    Attributes:
        observed: the values; at least one is finite.
        bits: of the integers.
        symmetric: the grid is -(2^(bits-1) - 1) .. 2^(bits-1) - 1, with zero in the middle; else
            it has 2^bits points and zero is any of them.
    """

    observed: Observed
    bits: int = 8
    symmetric: bool = False

    def min_max(self) -> Ends:
        """Return the extremes of the values, which clips nothing."""
        return self._widened(self.observed.low, self.observed.high)

    def percentile(self, percent: float) -> Ends:
        """Return ends with `percent` of the values between them and equal shares beyond each."""
        beyond = (1 - percent / 100) / 2
        return self._widened(self.observed.quantile(beyond), self.observed.quantile(1 - beyond))

    def entropy(self) -> Ends:
        """Return the ends whose grid loses least of the distribution (Kullback-Leibler).

        This is the search of Migacz 2017, for values of both signs, and without exact zeros, which
        every grid keeps. The narrowest candidate has one bin for each point of the grid. It needs
        tens of thousands of values: where bins hold one each, clipping seems to cost nothing.
        """
        if not self._bins.share.size:
            return self.min_max()
        narrowest = min(1.0, (self._intervals + 1) / BINS)
        return min(self._magnitudes(narrowest), key=self._divergence)

    def least_error(self) -> Ends:
        """Return the ends with the least expected squared error that a search finds.

        It goes over magnitudes common to both ends first, then closer and closer around the best.
        """
        best = min(self._magnitudes(NARROWEST), key=self.error)
        for spread in SPREADS:
            best = min(self._neighbours(best, spread), key=self.error)
        return best

    def error(self, ends: Ends) -> float:
        """Return the expected squared error of all values, zeros too, on the grid of `ends`."""
        step = (ends[1] - ends[0]) / self._intervals
        if step < LEAST_STEP:
            return _Grid(0.0, 0.0, 0).error(self._bins)
        return _Grid(-round(-ends[0] / step) * step, step, self._intervals).error(self._bins)

    @cached_property
    def _bins(self) -> _Bins:
        return _Bins.of(self.observed)

    @property
    def _intervals(self) -> int:
        """Number of steps from the lowest point of the grid to the highest."""
        return (1 << self.bits) - (2 if self.symmetric else 1)

    def _widened(self, low: float, high: float) -> Ends:
        """Return the ends with zero between them, and in the middle where the grid asks it."""
        low, high = min(low, 0.0), max(high, 0.0)
        largest = max(high, -low)
        return (0.0 - largest, largest) if self.symmetric else (low, high)

    def _magnitudes(self, narrowest: float) -> Iterator[Ends]:
        """Yield ends that cut off magnitudes, the widest first."""
        low, high = self.min_max()
        for part in np.geomspace(1.0, narrowest, CANDIDATES).tolist():
            limit = part * max(-low, high)
            yield max(low, -limit), min(high, limit)

    def _neighbours(self, ends: Ends, spread: float) -> Iterator[Ends]:
        """Yield the given ends, then others beside them within the extremes of the values."""
        low, high = self.min_max()
        factors = np.linspace(1 - spread, 1 + spread, STEPS).tolist()
        pairs = itertools.product(factors, repeat=2)
        yield ends
        for below, above in pairs:
            if below == above or not self.symmetric:
                yield max(low, ends[0] * below), min(high, ends[1] * above)

    def _divergence(self, ends: Ends) -> float:
        """Return KL(P | Q): P the clipped distribution, Q the part between the ends on the grid.

        Q spreads what falls to one point evenly over those of its bins that hold values.
        """
        middle = (self._bins.left + self._bins.right) / 2
        is_inside = (middle >= ends[0]) & (middle <= ends[1])
        if not is_inside.any():
            return float("inf")
        share = self._bins.share[is_inside]
        clipped = share.copy()
        clipped[0] += self._bins.share[middle < ends[0]].sum()
        clipped[-1] += self._bins.share[middle > ends[1]].sum()
        points = self._intervals + 1
        part = (middle[is_inside] - ends[0]) / (ends[1] - ends[0])
        point = np.minimum((part * points).astype(np.intp), self._intervals)
        spread = (np.bincount(point, share) / np.maximum(np.bincount(point), 1))[point]
        return float(clipped @ np.log(clipped / spread * share.sum()))


@dataclass(frozen=True)
class _Bins:
    """Bins that hold values: edges, and shares of all values; exact zeros are in none."""

    left: Floats
    right: Floats
    share: Floats

    @classmethod
    def of(cls, observed: Observed) -> _Bins:
        holds = observed.bins > 0
        edges = observed.edges
        return cls(edges[:-1][holds], edges[1:][holds], observed.bins[holds] / observed.count)


@dataclass(frozen=True)
class _Grid:
    """Points lowest, lowest + step, ..., `intervals` steps in all; zero is one of them."""

    lowest: float
    step: float
    intervals: int

    def error(self, bins: _Bins) -> float:
        """Return the expected squared distance to the nearest point, times the share in bins."""
        width = bins.right - bins.left
        area = self._area(bins.right) - self._area(bins.left)
        is_wide = width > 0
        mean = np.where(is_wide, area / np.where(is_wide, width, 1), self._distance(bins.left) ** 2)
        return float(np.maximum(mean, 0) @ bins.share)  # differences of equals may fall below 0

    def _place(self, values: Floats) -> Floats:
        """Return where values, clipped, lie on the grid, counted in steps."""
        if not self.step:
            return np.zeros_like(values)
        return np.clip((values - self.lowest) / self.step, 0, self.intervals)

    def _distance(self, values: Floats) -> Floats:
        return values - self.lowest - self.step * np.rint(self._place(values))

    def _area(self, values: Floats) -> Floats:
        """Return the integral of the squared distance from the lowest point to each value.

        A whole step contributes step^3 / 12, what lies r beyond the nearest point r^3 / 3.
        """
        place = self._place(values)
        points = np.rint(place)
        inside = self.step**3 * (points / 12 + (place - points) ** 3 / 3)
        outside = values - self.lowest - self.step * place
        return inside + outside**3 / 3
