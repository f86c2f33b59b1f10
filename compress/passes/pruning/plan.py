"""Choose units to take out until a target is met, the cheapest loss first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .tracing import Unit, level_groups
from .trials import Prunable

__all__ = ["Cost", "Plan", "choose"]

BYTES = 4  # of a float32


@dataclass(frozen=True)
class Cost:
    """What a module needs: multiplications of a call as traced, parameters, bytes in float32."""

    macs: int
    parameters: int

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the parameters in float32."""
        return BYTES * self.parameters


class Plan:
    """Which units go; costs follow from the lengths of axes alone."""

    def __init__(self, prunable: Prunable) -> None:
        """Begin with all units in their place."""
        registry = prunable.dependencies.registry
        names = {name for name, _ in prunable.module.named_parameters()}
        self._lengths = {
            name: list(shape) for name, shape in registry.shapes.items() if name in names
        }
        self._uses = registry.uses
        self.removed: list[Unit] = []

    @property
    def cost(self) -> Cost:
        """Return what is left."""
        return self._cost(self._lengths)

    def cost_without(self, units: Sequence[Unit]) -> Cost:
        """Return what would be left without these units too."""
        return self._cost(self._shorter(units))

    def take(self, units: Sequence[Unit]) -> None:
        """Take units out."""
        self._lengths = self._shorter(units)
        self.removed += units

    def _shorter(self, units: Sequence[Unit]) -> dict[str, list[int]]:
        lengths = {name: list(each) for name, each in self._lengths.items()}
        for (tensor, axis), count in Counter(
            (slot.tensor, slot.axis) for unit in units for slot in unit.slots
        ).items():
            if tensor in lengths:
                lengths[tensor][axis] -= count
        return lengths

    def _cost(self, lengths: Mapping[str, Sequence[int]]) -> Cost:
        macs = parameters = 0
        for name, sizes in lengths.items():
            count = math.prod(sizes)
            parameters += count
            macs += count * self._uses[name]
        return Cost(macs, parameters)


def choose(
    prunable: Prunable,
    importance: Mapping[int, float],
    is_met: Callable[[Plan], bool],
    *,
    multiple: int = 8,
    least: int = 8,
    evenly: bool = False,
    fast: Mapping[str, Sequence[int]] | None = None,
) -> Plan:
    """Take groups of units out, the least important per saved multiplication first.

    Args:
        prunable: the module's families.
        importance: of every unit, by its root.
        is_met: whether the target is met.
        multiple: widths that are left are multiples of this where they were wider.
        least: units that every family keeps.
        evenly: prune every family alike, the least important of each; else all compete.
        fast: widths that count instead of multiples, by the name of the family.
    """
    plan = Plan(prunable)
    groups = level_groups(prunable.families)
    left = {
        number: [sorted(f.units, key=lambda u: importance[u.root]) for f in group]
        for number, group in enumerate(groups)
    }
    widths = {number: len(rows[0]) for number, rows in left.items()}
    stops = [
        next((fast[f.name] for f in group if f.name in fast), None) if fast else None
        for group in groups
    ]
    while not is_met(plan):
        best, macs = None, plan.cost.macs
        for number, rows in left.items():
            count = _step(len(rows[0]), multiple, least, stops[number])
            if not count:
                continue
            units = [unit for row in rows for unit in row[:count]]
            lost = sum(importance[unit.root] for unit in units)
            saved = macs - plan.cost_without(units).macs
            # Alike: the family that is left widest, as a share of its width, goes on.
            price = -len(rows[0]) / widths[number] if evenly else lost / max(saved, 1)
            if best is None or price < best[0]:
                best = price, number, count, units
        if best is None:
            break
        _, number, count, units = best
        plan.take(units)
        left[number] = [row[count:] for row in left[number]]
    return plan


def _step(width: int, multiple: int, least: int, stops: Sequence[int] | None) -> int:
    """Return how many units go next: down to the next multiple or stop, or none."""
    if stops is None:
        target = (width - 1) // multiple * multiple
    else:
        target = max((each for each in stops if each < width), default=0)
    return width - target if target >= least else 0
