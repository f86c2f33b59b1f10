"""Which splits between integers and floats to try next, from what became of others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .gate import Finding
from .passes.partition import Border, Operator, Split, cheapest_split
from .refine import Point, Sensitivity, front

__all__ = ["Look", "Splitting"]

BETWEEN = 2  # splits tried between one outside the budget and one within, per round

Look = Callable[[str], Finding]


@dataclass
class Splitting:
    """The splits of one scheme: what nodes cost in both forms, and what was tried.

    Attributes:
        operators: nodes with their times.
        borders: what crossing between integers and floats costs, by tensor.
        outputs: names of the graph's outputs.
        tried: SQNR in dB by name of the candidate; -inf where it was not looked for.
        points: splits from the fastest on, once something was outside the budget; None before.
        skipped: how many roundings were not measured.
    """

    operators: Sequence[Operator]
    borders: dict[str, Border]
    outputs: Sequence[str]
    tried: dict[str, float] = field(default_factory=dict)
    points: list[Point] | None = None
    skipped: int = 0

    def fastest(self) -> Split:
        """Return the split that takes the least time, whatever its noise."""
        return cheapest_split(self.operators, self.borders, self.outputs)

    def measure(self, sensitivity: Sensitivity) -> None:
        """Find the splits by their noise; the fastest is tried before."""
        fastest = self.fastest().integer
        points = front(self.operators, self.borders, self.outputs, sensitivity)
        self.points = [each for each in points if each.split.integer != fastest]
        self.skipped = len(sensitivity.skipped)

    def has_failed(self, look: Look) -> bool:
        """Whether something that was tried is outside the budget, and the fastest split not within.

        The first that is tried is the whole scheme, the second the fastest split.
        """
        is_within = any(_is_within(look(name)) for name in [*self.tried][1:2])
        return not is_within and any(look(name).is_outside for name in self.tried)

    def next(self, look: Look, ladder: Sequence[float]) -> list[Point]:
        """Return what to try next: what should meet the ladder's targets, then what lies between.

        Args:
            look: returns what the gate found out about a candidate.
            ladder: SQNR in dB to begin with, rising.
        """
        known = set(self.tried.values())
        left = [each for each in self.points or () if each.agreement_db not in known]
        if all(db == -math.inf for db in self.tried.values()):
            return _first_above(left, ladder)
        low, high = self._limits(look)
        between = [each for each in left if low < each.agreement_db < high]
        parts = min(BETWEEN, len(between)) + 1
        places = {len(between) * part // parts for part in range(1, parts)}
        return [between[place] for place in sorted(places)]

    def _limits(self, look: Look) -> tuple[float, float]:
        """Return the SQNR of the closest outside the budget, and of the first within above it."""
        outside = [db for name, db in self.tried.items() if look(name).is_outside]
        low = max(outside, default=-math.inf)
        within = [db for name, db in self.tried.items() if _is_within(look(name))]
        return low, min((db for db in within if db > low), default=math.inf)

    def last_outside(self, look: Look) -> str | None:
        """Return the closest to FP32 of the splits outside the budget, if faster than those within.

        It is the one worth repairing.
        """
        outside = {n: db for n, db in self.tried.items() if look(n).is_outside and db > -math.inf}
        name = max(outside, key=lambda each: outside[each], default=None)
        if name is None:
            return None
        within = [each for each in self.tried if _is_within(look(each))]
        best = max((_speed(look(each)) for each in within), default=0.0)
        return name if _speed(look(name)) > best else None


def _first_above(points: Sequence[Point], ladder: Sequence[float]) -> list[Point]:
    """Return the first point that meets each target; points rise in time and SQNR."""
    found: list[Point] = []
    for target in ladder:
        point = next((each for each in points if each.agreement_db >= target), None)
        if point is not None and point not in found:
            found.append(point)
    return found


def _is_within(finding: Finding) -> bool:
    return finding.validation is not None and not finding.is_outside


def _speed(finding: Finding) -> float:
    return finding.quick.ratio if finding.quick else 0.0
