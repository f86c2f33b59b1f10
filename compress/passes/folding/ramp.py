"""y = clip(slope * x + offset, low, high): what a chain of Add, Mul, Clip and the like may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .affine import constant_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["IDENTITY", "Ramp", "Reading", "is_only_read_by", "operands", "readings"]


@dataclass(frozen=True)
class Ramp:
    """A straight line between two levels."""

    slope: float = 1.0
    offset: float = 0.0
    low: float = -math.inf
    high: float = math.inf

    def scaled(self, factor: float) -> Ramp:
        """Return factor * y, for a factor other than zero."""
        ends = sorted((self.low * factor, self.high * factor))
        return Ramp(self.slope * factor, self.offset * factor, *ends)

    def shifted(self, by: float) -> Ramp:
        """Return y + by."""
        return Ramp(self.slope, self.offset + by, self.low + by, self.high + by)

    def clipped(self, low: float, high: float) -> Ramp:
        """Return clip(y, low, high), for low <= high."""
        ends = (min(max(end, low), high) for end in (self.low, self.high))
        return Ramp(self.slope, self.offset, *ends)

    @property
    def is_clipped(self) -> bool:
        """Whether it has a level at one end at least."""
        return math.isfinite(self.low) or math.isfinite(self.high)


IDENTITY = Ramp()
Then = Callable[[Ramp], Ramp]


@dataclass(frozen=True)
class Reading:
    """A value, read as a ramp of another.

    Attributes:
        source: what it is a ramp of.
        ramp: which one.
        nodes: the operators between the two, the last one first.
    """

    source: ir.Value
    ramp: Ramp
    nodes: tuple[ir.Node, ...]


def readings(value: ir.Value) -> Iterator[Reading]:
    """Yield a value as a ramp of what it is computed from, nearest source first.

    The first is the value as itself. Operators between it and a source have no other readers.
    """
    steps: list[Then] = []
    nodes: list[ir.Node] = []
    while True:
        ramp = IDENTITY
        for step in reversed(steps):
            ramp = step(ramp)
        yield Reading(value, ramp, tuple(nodes))
        node = value.producer()
        found = None if node is None or (nodes and not _is_inner(value)) else _read(node)
        if node is None or found is None:
            return
        value, step = found
        steps.append(step)
        nodes.append(node)


def is_only_read_by(value: ir.Value, *nodes: ir.Node) -> bool:
    """Whether a value is no output, and no other node reads it."""
    return not value.is_graph_output() and set(value.consumers()) <= set(nodes)


def operands(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return the one operand that is computed and the number that the other one is, or None."""
    if len(node.inputs) != 2:
        return None
    numbers = [_number(value) for value in node.inputs]
    for at in (0, 1):
        value, number = node.inputs[at], numbers[1 - at]
        if value is not None and value.const_value is None and number is not None:
            return value, number
    return None


def _is_inner(value: ir.Value) -> bool:
    return not value.is_graph_output() and len(value.uses()) == 1


def _read(node: ir.Node) -> tuple[ir.Value, Then] | None:
    """Return the input of a node and what the node does to it, or None where that is no ramp."""
    reader = _READERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    return None if reader is None else reader(node)


def _read_binary(node: ir.Node) -> tuple[ir.Value, Then] | None:
    found = operands(node)
    if found is None:
        return None
    value, number = found
    is_first = node.inputs[0] is value
    step = _step(node.op_type, number, is_first=is_first)
    return None if step is None else (value, step)


def _step(op: str, number: float, *, is_first: bool) -> Then | None:
    if op == "Add":
        return lambda ramp: ramp.shifted(number)
    if op == "Sub" and is_first:
        return lambda ramp: ramp.shifted(-number)
    if op == "Sub":
        return lambda ramp: ramp.scaled(-1).shifted(number)
    if op == "Max":
        return lambda ramp: ramp.clipped(number, math.inf)
    if op == "Min":
        return lambda ramp: ramp.clipped(-math.inf, number)
    if op == "Mul" and number:
        return lambda ramp: ramp.scaled(number)
    if op == "Div" and number and is_first:
        return lambda ramp: ramp.scaled(1 / number)
    return None


def _read_clip(node: ir.Node) -> tuple[ir.Value, Then] | None:
    ends = [-math.inf, math.inf]
    for index, value in enumerate(node.inputs[1:3]):
        if value is not None:
            number = _number(value)
            if number is None:
                return None
            ends[index] = number
    low, high = ends
    value = node.inputs[0]
    if value is None or not low <= high or node.attributes:
        return None
    return value, lambda ramp: ramp.clipped(low, high)


def _read_relu(node: ir.Node) -> tuple[ir.Value, Then] | None:
    value = node.inputs[0]
    return None if value is None else (value, lambda ramp: ramp.clipped(0, math.inf))


def _read_hard_sigmoid(node: ir.Node) -> tuple[ir.Value, Then] | None:
    """Read clip(alpha * x + beta, 0, 1)."""
    given = {name: each.as_float() for name, each in node.attributes.items()}
    alpha, beta, value = given.get("alpha", 0.2), given.get("beta", 0.5), node.inputs[0]
    if value is None or not alpha:
        return None
    return value, lambda ramp: ramp.scaled(alpha).shifted(beta).clipped(0, 1)


def _number(value: ir.Value | None) -> float | None:
    """Return a finite float32 constant of one element and at most one axis, or None."""
    import onnx_ir as ir

    table = constant_of(value)
    if value is None or table is None or table.size != 1 or table.ndim > 1:
        return None
    assert value.const_value is not None
    is_plain = value.const_value.dtype == ir.DataType.FLOAT and np.isfinite(table).all()
    return float(table.reshape(())) if is_plain else None


_READERS: Mapping[str, Any] = {
    **dict.fromkeys(("Add", "Div", "Max", "Min", "Mul", "Sub"), _read_binary),
    "Clip": _read_clip,
    "HardSigmoid": _read_hard_sigmoid,
    "Relu": _read_relu,
}
