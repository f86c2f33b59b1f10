"""When enough was measured: looks at the verdict while processes still go on.

Looking often and stopping at the first clear verdict would call chance a difference more than 5
times of 100. So the 5 % are shared out (Bonferroni): all early looks together get 1 %, the last one
4 %. A large difference is clear at an early look all the same; a small one takes every process. A
clear verdict alone is worth little where the interval is wide ("2.5 times, between 1.02 and 6.2"),
so an early end can ask for an interval that is narrow enough, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .statistics import CONFIDENCE, paired_speedup

__all__ = ["LEAST_PROCESSES", "Reason", "Stopping"]

LEAST_PROCESSES = 3
EARLY_ERROR = 0.01

Reason = Literal["verdict clear", "all processes", "out of time"]


@dataclass(frozen=True)
class Stopping:
    """The rule for at most `processes` processes, the first look after `LEAST_PROCESSES`.

    An early look ends the measurement only where every interval's half width, as a share of the
    ratio, is at most `precision`; with None the verdicts alone count.
    """

    processes: int
    precision: float | None = None

    @property
    def early_looks(self) -> int:
        """Return how many looks come before the last one."""
        return max(0, self.processes - LEAST_PROCESSES)

    def confidence(self, reason: Reason) -> float:
        """Return the confidence of an interval, by why the measurement ended."""
        if not self.early_looks:
            return CONFIDENCE
        if reason == "verdict clear":
            return 1 - EARLY_ERROR / self.early_looks
        return CONFIDENCE + EARLY_ERROR

    def is_clear(
        self,
        baseline: NDArray[np.float64],
        candidates: Sequence[NDArray[np.float64]],
        *,
        seed: int = 0,
    ) -> bool:
        """Whether every verdict is clear, and narrow enough; (processes, blocks) arrays in ms."""
        if not candidates or len(baseline) < LEAST_PROCESSES:
            return False
        confidence = self.confidence("verdict clear")
        found = (
            paired_speedup(baseline, each, seed=seed, confidence=confidence) for each in candidates
        )
        widest = math.inf if self.precision is None else self.precision
        return all(
            each.verdict != "no difference shown" and each.half_width <= widest for each in found
        )
