"""Quality without a task: the distance of a model's outputs to those of the FP32 model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.closeness import MOST_DB
from aigc_compress.errors import UsageError
from aigc_compress.task import Feeds, Measure, MeasureDocument, Quality, Runner

__all__ = ["measure_sqnr"]


def measure_sqnr(reference: Runner, candidate: Runner, feeds: Iterable[Feeds]) -> Quality:
    """Return the agreement of the worst output over all feeds, in dB (see `closeness`).

    The details hold the agreement of every output, the cosine similarity of those that are floats
    (whole numbers are labels as a rule, which have no direction), and the worst sample: the set of
    feeds and the output that agree least. No more than one sample's outputs are kept at a time.

    Raises:
        UsageError: there are no feeds.
    """
    totals: dict[str, _Sums] = {}
    worst: dict[str, Any] = {}
    count, least = 0, math.inf
    for index, each in enumerate(feeds):
        wanted = reference.run(each)
        found = wanted if candidate is reference else candidate.run(each)
        for name, value in wanted.items():
            sums = _Sums.of(np.asarray(value), np.asarray(found[name]))
            totals[name] = totals.get(name, _Sums(sums.is_float)).plus(sums)
            if sums.agreement_db < least:
                least, worst = sums.agreement_db, {"index": index, "output": name}
        count = index + 1
    if not count:
        raise UsageError("Quality needs at least one set of feeds.")
    by_output = {name: sums.agreement_db for name, sums in totals.items()}
    details = {
        "sqnr_db_by_output": by_output,
        "cosine_by_output": {
            name: _measure(sums.cosine, count) for name, sums in totals.items() if sums.is_float
        },
        "worst_sample_db": {**_measure(least, count), **worst},
    }
    return Quality("SQNR dB", min(by_output.values()), True, count, "feeds", None, details)


@dataclass(frozen=True)
class _Sums:
    """Sums over the entries of one output, from which `closeness` of any number of samples follows.

    Attributes:
        is_float: whether entries are floats; only then the powers count, else what differs.
        entries: their number.
        differing: of these, how many differ.
        misfits: arrays whose shape, or whose places of infinities and NaN, are not the reference's.
        signal: sum of r^2.
        power: sum of v^2.
        product: sum of r v.
        noise: sum of (r - v)^2.
    """

    is_float: bool
    entries: int = 0
    differing: int = 0
    misfits: int = 0
    signal: float = 0.0
    power: float = 0.0
    product: float = 0.0
    noise: float = 0.0

    @classmethod
    def of(cls, reference: NDArray[Any], value: NDArray[Any]) -> _Sums:
        """Return the sums of one pair of arrays."""
        is_float = bool(np.issubdtype(reference.dtype, np.floating))
        if reference.shape != value.shape:
            return cls(is_float, misfits=1)
        if not is_float:
            return cls(False, reference.size, int(np.count_nonzero(reference != value)))
        r, v = reference.astype(np.float64).ravel(), value.astype(np.float64).ravel()
        finite = np.isfinite(r)
        if not finite.all():
            if not np.array_equal(r[~finite], v[~finite], equal_nan=True):
                return cls(True, misfits=1)
            r, v = r[finite], v[finite]
        if not np.isfinite(v).all():
            return cls(True, misfits=1)
        error = r - v
        products = (r @ r, v @ v, r @ v, error @ error)
        return cls(True, r.size, 0, 0, *map(float, products))

    def plus(self, other: _Sums) -> _Sums:
        """Return the sums over the entries of both."""
        pairs = zip(astuple(self)[1:], astuple(other)[1:], strict=True)
        return _Sums(self.is_float, *(mine + theirs for mine, theirs in pairs))

    @property
    def agreement_db(self) -> float:
        """Return SQNR for floats, else -10 log10 of the share that differs; 200 for equal ones."""
        if self.misfits:
            return -MOST_DB
        wanted, wrong = self.signal, self.noise
        if not self.is_float:
            wanted, wrong = self.entries, self.differing
        if not wrong:
            return MOST_DB
        if not wanted:
            return -MOST_DB
        return min(max(10 * math.log10(wanted / wrong), -MOST_DB), MOST_DB)

    @property
    def cosine(self) -> float:
        """Return sum(r v) / (|r| |v|), in [-1, 1]; zeros beside zeros count as 1, else as 0."""
        if self.misfits:
            return -1.0
        lengths = math.sqrt(self.signal) * math.sqrt(self.power)
        if not lengths:
            return 1.0 if self.signal == self.power else 0.0
        return min(max(self.product / lengths, -1.0), 1.0)


def _measure(value: float, samples: int) -> MeasureDocument:
    return Measure(value, True, samples).document()
