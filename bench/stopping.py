"""When enough was measured: looks at the verdict while processes still go on.

Looking often and stopping at the first clear verdict would call chance a difference more than 5
times of 100. So the 5 % are shared out (Bonferroni): all early looks together get 1 %, the last one
4 %. A large difference is clear at an early look all the same; a small one takes every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .statistics import CONFIDENCE, ratio_of_medians

__all__ = ["LEAST_PROCESSES", "Reason", "Stopping"]

LEAST_PROCESSES = 3
EARLY_ERROR = 0.01

Reason = Literal["verdict clear", "all processes", "out of time"]


@dataclass(frozen=True)
class Stopping:
    """The rule for at most `processes` processes, the first look after `LEAST_PROCESSES`."""

    processes: int

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
        """Whether every candidate has a verdict already, from (processes, blocks) arrays in ms."""
        if not candidates or len(baseline) < LEAST_PROCESSES:
            return False
        confidence = self.confidence("verdict clear")
        found = (
            ratio_of_medians(baseline, each, seed=seed, confidence=confidence)
            for each in candidates
        )
        return all(each.verdict != "no difference shown" for each in found)
