"""What a pass asks when a choice needs a timing; `bench/meter.py` answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .artifact import Artifact
from .task import Feeds

__all__ = ["Meter", "Speedup"]


class Speedup(Protocol):
    """How many times faster a candidate is: a ratio with its interval and verdict."""

    @property
    def ratio(self) -> float:
        """Latency of the baseline over that of the candidate."""
        ...

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        ...

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        ...

    @property
    def verdict(self) -> str:
        """`faster`, `slower` or `no difference shown`."""
        ...


class Meter(Protocol):
    """Compares artifacts by latency on the machine at hand."""

    def compare(
        self, baseline: Artifact, candidates: Sequence[Artifact], feeds: Feeds
    ) -> Sequence[Speedup]:
        """Return the speed-up of every candidate over the baseline, on one set of feeds."""
        ...
