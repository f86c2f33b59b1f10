"""Which indices of weights and activations must go together: ids, and who was tied to whom.

Every index along an axis of a parameter that an operator reads as channels has an id. Operators
tie ids: a channel of a convolution's output is its filter, its bias, the batch norm's entry, and
the slice of every later weight that reads it. Ids that are tied form one unit, which is removed
whole or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIXED", "Fork", "Ids", "Marks", "Registry", "Slot"]

Ids = NDArray[np.int64]
Fork = tuple[str, tuple[int, ...]]  # an operator's name and the shape of its result
FIXED = 0  # the id of what stays: a model's input, a padded zero, a constant


@dataclass(frozen=True, order=True)
class Slot:
    """One index along one axis of a parameter or buffer."""

    tensor: str
    axis: int
    index: int


@dataclass(frozen=True)
class Marks:
    """An activation: its shape, and the ids along the one axis that its channels lie on."""

    shape: tuple[int, ...]
    axis: int | None = None
    ids: Ids | None = None

    @classmethod
    def of(cls, shape: Sequence[int], axis: int, ids: Ids) -> Marks:
        """Mark an axis, which may be negative."""
        return cls(tuple(shape), axis % len(shape), ids)

    def along(self, axis: int) -> Ids:
        """Return the ids along an axis; where no channels lie, all stay."""
        axis %= len(self.shape)
        if axis == self.axis and self.ids is not None:
            return self.ids
        return np.full(self.shape[axis], FIXED)


class Registry:
    """Ids of parameters' indices, and which of them are tied (a union-find)."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        choices: Mapping[Fork, int] | None = None,
    ) -> None:
        """Prepare.

        Args:
            shapes: of parameters and buffers, by qualified name.
            choices: the axis that channels stay on, where an operator spreads them over several.
        """
        self.shapes = shapes
        self.choices = choices or {}
        self.forks: dict[Fork, tuple[int, ...]] = {}  # the axes that there were to choose from
        self._parents = [FIXED]
        self._ids: dict[tuple[str, int], Ids] = {}
        self._reasons = {FIXED: "it meets the model's input or a constant"}
        self.level: list[tuple[tuple[str, int], ...]] = []  # axes that must stay equally long
        self.makers: list[tuple[str, int]] = []  # weights' axes that channels come from, in order
        self.uses: Counter[str] = Counter()  # how often each element of a weight is multiplied

    def ids(self, tensor: str, axis: int) -> Ids:
        """Return the ids along an axis of a parameter or buffer."""
        key = (tensor, axis % len(self.shapes[tensor]))
        if key not in self._ids:
            self._ids[key] = self._new(self.shapes[tensor][key[1]])
        return self._ids[key]

    def tie(self, one: Ids, other: Ids) -> None:
        """Tie two rows of ids, index by index; what is tied to a fixed one is fixed."""
        for pair in zip(one.tolist(), other.tolist(), strict=True):
            first, second = map(self.root, pair)
            if second in self._reasons:
                first, second = second, first
            if first != second:
                self._parents[second] = first

    def merge(self, ids: Ids) -> None:
        """Tie all of these to each other."""
        self.tie(ids[1:], ids[:-1])

    def fix(self, ids: Ids, reason: str) -> None:
        """Keep these indices and all that is tied to them."""
        node = self._new(1)
        self._reasons[int(node[0])] = reason
        self.tie(np.repeat(node, len(ids)), ids)

    def fix_tensor(self, tensor: str, reason: str) -> None:
        """Keep a parameter as it is."""
        for axis in range(len(self.shapes[tensor])):
            self.fix(self.ids(tensor, axis), reason)

    def units(self) -> dict[int, tuple[Slot, ...]]:
        """Return the slots of every unit that can go, by its root, in order of first use."""
        units: dict[int, list[Slot]] = {}
        for (tensor, axis), ids in self._ids.items():
            for index, each in enumerate(ids.tolist()):
                root = self.root(each)
                if root not in self._reasons:
                    units.setdefault(root, []).append(Slot(tensor, axis, index))
        return {root: tuple(sorted(slots)) for root, slots in units.items()}

    def axes(self) -> list[tuple[str, int]]:
        """Return the parameters' axes that some operator reads as channels."""
        return list(self._ids)

    def reason(self, tensor: str, axis: int) -> str | None:
        """Return why all indices along an axis stay; None where some can go."""
        found = {self._reasons.get(self.root(int(each))) for each in self.ids(tensor, axis)}
        return None if None in found else min(str(each) for each in found)

    def _new(self, count: int) -> Ids:
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, index: int) -> int:
        """Return the id that stands for all that are tied to this one."""
        parents = self._parents
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index
