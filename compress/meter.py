"""What a pass asks when a choice needs a timing; `bench/meter.py` answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .artifact import Artifact
from .task import Feeds

__all__ = ["Clock", "Meter", "NodeTime", "Speedup"]


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


@dataclass(frozen=True)
class NodeTime:
    """What a node took: operator, median milliseconds per call, elements of its first output."""

    op: str
    ms: float
    elements: int


class Clock(Protocol):
    """Tells how long calls take on the machine at hand."""

    def milliseconds(self, artifacts: Sequence[Artifact], feeds: Feeds) -> Sequence[float]:
        """Return the median time of a call of every ONNX artifact, all on one set of feeds."""
        ...


class Meter(Protocol):
    """Compares artifacts by latency on the machine at hand."""

    def compare(
        self,
        baseline: Artifact,
        candidates: Sequence[Artifact],
        feeds: Feeds,
        engines: Sequence[str] = (),
    ) -> Sequence[Speedup]:
        """Return the speed-up of every candidate over the baseline, on one set of feeds.

        The baseline runs on ONNX Runtime, and so does every candidate where no engines are named.
        """
        ...

    def profile(self, artifact: Artifact, feeds: Feeds) -> Mapping[str, NodeTime]:
        """Return the times of nodes by the name of their first output, those of a session."""
        ...
