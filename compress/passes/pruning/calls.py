"""What a rule sees: one call of an operator, with tensors as operands that have ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .marks import Ids, Marks, Registry

__all__ = ["Call", "Operand", "Weight"]


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer where an operator reads it: every axis has ids of its own."""

    name: str
    registry: Registry

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its sizes."""
        return self.registry.shapes[self.name]

    def along(self, axis: int) -> Ids:
        """Return the ids along an axis."""
        return self.registry.ids(self.name, axis)


Operand = Marks | Weight


@dataclass(frozen=True)
class Call:
    """One call of an operator: its arguments by name, with tensors as operands, and its results.

    Attributes:
        name: of the operator, without `aten.` and overload.
        target: the operator itself, callable.
        arguments: by the schema's names, defaults included.
        shapes: of the results.
        is_pointwise: whether every result element depends on the same element of each operand.
        registry: of ids.
    """

    name: str
    target: Callable[..., Any]
    arguments: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    is_pointwise: bool
    registry: Registry

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the sizes of the only result."""
        return self.shapes[0]

    @property
    def operands(self) -> list[Operand]:
        """Return all tensors among the arguments, lists of them included."""
        flat: list[Any] = []
        for each in self.arguments.values():
            flat += each if isinstance(each, (list, tuple)) else [each]
        return [each for each in flat if isinstance(each, (Marks, Weight))]

    def multiplied(self, weight: Weight, *, reads: int, makes: int, times: int) -> tuple[Ids, Ids]:
        """Note how often a weight is multiplied; return the ids that it reads and makes."""
        self.registry.uses[weight.name] += times
        self.registry.makers.append((weight.name, makes))
        return weight.along(reads), weight.along(makes)

    def tie_rows(self, rows: Sequence[Ids] | Ids) -> None:
        """Tie several rows of ids, index by index."""
        for row in rows[1:]:
            self.registry.tie(rows[0], row)

    def keep(self, operand: Operand, reason: str) -> None:
        """Keep all channels of an operand."""
        if isinstance(operand, Weight):
            self.registry.fix_tensor(operand.name, reason)
        elif operand.ids is not None:
            self.registry.fix(operand.ids, reason)

    def channels(self, operand: Operand, axis: int) -> Ids:
        """Return the ids along an axis; channels that lie on another one are kept."""
        if isinstance(operand, Marks) and operand.axis not in (None, axis % len(operand.shape)):
            self.keep(operand, f"{self.name} works across the axis that they lie on")
            return Marks(operand.shape).along(axis)
        return operand.along(axis)
