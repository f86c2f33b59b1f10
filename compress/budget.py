"""What the user allows a compressed model to lose, and whether it stays within."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .errors import UsageError
from .task import Exhibit, Quality

__all__ = ["LEAST_SQNR_DB", "Budget", "Judgement", "judge_quality"]

LEAST_SQNR_DB = 20.0
# Allowed drop by the metric's first word: (absolute, share of the baseline).
DEFAULTS = {"top-1": (0.5, 0.0), "bits": (0.0, 0.01), "KID": (0.0, 0.05)}
AMOUNT = re.compile(r"^(?P<number>\d+(\.\d+)?)(?P<percent>%?)$")


@dataclass(frozen=True)
class Budget:
    """An allowed drop in the metric's unit, or as a share of the baseline's value.

    Attributes:
        absolute: allowed drop in the metric's own unit.
        share: allowed drop as a share of the baseline; the larger of the two holds.
        least_sqnr_db: what the outputs must reach against FP32 where there is no task.
    """

    absolute: float = 0.0
    share: float = 0.0
    least_sqnr_db: float = LEAST_SQNR_DB

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `0.5` (the metric's unit) or `1%` (of the baseline); raises UsageError."""
        match = AMOUNT.match(text.strip())
        if match is None:
            raise UsageError(f"--max-drop {text!r} must be a number like 0.5, or a share like 1%.")
        number = float(match["number"])
        return cls(share=number / 100) if match["percent"] else cls(absolute=number)

    @classmethod
    def default_for(cls, metric: str) -> Budget:
        """Return the default for a metric; metrics that are not known allow nothing."""
        return cls(*DEFAULTS.get(metric.split()[0], (0.0, 0.0)))

    def allowed(self, baseline: Quality) -> float:
        """Return the allowed drop in the metric's unit.

        For KID never less than the deviation of the baseline's own measurement: a smaller change
        cannot be told from noise.
        """
        noise = (baseline.spread or 0.0) if baseline.metric.startswith("KID") else 0.0
        return max(self.absolute, self.share * abs(baseline.value), noise)


@dataclass(frozen=True)
class Judgement:
    """A quality beside its baseline and budget; `document` is its JSON form."""

    quality: Quality
    baseline: Quality | None
    allowed: float
    within: bool
    exhibit: Exhibit | None = None

    def document(self) -> dict[str, Any]:
        """Return metric, direction, values, drop, budget, whether it is within, and the exhibit."""
        baseline = self.baseline
        return {
            "metric": self.quality.metric,
            "higher_is_better": self.quality.higher_is_better,
            "baseline": baseline.value if baseline else None,
            "value": self.quality.value,
            "drop": self.quality.drop_from(baseline) if baseline else None,
            "budget": self.allowed,
            "within": self.within,
            "samples": self.quality.samples,
            "split": self.quality.split,
            "spread": self.quality.spread,
            "details": dict(self.quality.details),
            "exhibit": self.exhibit.document() if self.exhibit else None,
        }


def judge_quality(quality: Quality, baseline: Quality | None, budget: Budget | None) -> Judgement:
    """Compare with the baseline; without one the value itself (SQNR) must reach the least."""
    if baseline is None:
        least = budget.least_sqnr_db if budget else LEAST_SQNR_DB
        return Judgement(quality, None, least, quality.value >= least)
    allowed = (budget or Budget.default_for(quality.metric)).allowed(baseline)
    return Judgement(quality, baseline, allowed, quality.drop_from(baseline) <= allowed)
