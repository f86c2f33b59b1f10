"""y = scale * x + shift per channel: what BatchNormalization, Mul, Add, Sub and Div may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Affine", "Layout", "constant_of", "per_channel", "read_affine"]

Floats = NDArray[np.float64]
DEFAULT_EPSILON = 1e-5


@dataclass(frozen=True)
class Affine:
    """A map of channels, y[c] = scale[c] * x[c] + shift[c]; both are float64 (C,)."""

    scale: Floats
    shift: Floats

    @property
    def has_shift(self) -> bool:
        """Whether it moves anything beside scaling it."""
        return bool(self.shift.any())


@dataclass(frozen=True)
class Layout:
    """Where the channels of a tensor stand.

    Attributes:
        channels: how many there are.
        axis: counted from the front; -1 where they are last in a tensor of unknown rank.
        rank: number of axes, or None where it is not known.
    """

    channels: int
    axis: int
    rank: int | None


def read_affine(node: ir.Node, layout: Layout, *, constant_at: int) -> Affine | None:
    """Return what a node does to the channels of its input, or None where it does something else.

    Args:
        node: BatchNormalization, Mul, Add, Sub or Div.
        layout: of the node's input.
        constant_at: index of the constant operand; not read for BatchNormalization.
    """
    if node.op_type == "BatchNormalization":
        affine = _read_batch_norm(node, layout)
    else:
        affine = _read_elementwise(node, layout, constant_at)
    if affine is None or not np.isfinite([affine.scale, affine.shift]).all():
        return None
    return affine


def _read_batch_norm(node: ir.Node, layout: Layout) -> Affine | None:
    """Read the inference form: (x - mean) / sqrt(variance + epsilon) * gamma + beta on axis 1."""
    is_training = len(node.outputs) > 1 or _integer(node, "training_mode", 0)
    if is_training or layout.axis != 1 or len(node.inputs) != 5:
        return None
    tables = [constant_of(value) for value in node.inputs[1:]]
    if any(table is None or table.shape != (layout.channels,) for table in tables):
        return None
    gamma, beta, mean, variance = (table for table in tables if table is not None)
    given = node.attributes.get("epsilon")
    epsilon = DEFAULT_EPSILON if given is None else given.as_float()
    with np.errstate(all="ignore"):  # what is not finite is refused afterwards
        scale = gamma / np.sqrt(variance + epsilon)
        return Affine(scale, beta - mean * scale)


def _read_elementwise(node: ir.Node, layout: Layout, constant_at: int) -> Affine | None:
    table = constant_of(node.inputs[constant_at])
    values = None if table is None else per_channel(table, layout)
    if values is None:
        return None
    ones, zeros = np.ones_like(values), np.zeros_like(values)
    if node.op_type == "Mul":
        return Affine(values, zeros)
    if node.op_type == "Add":
        return Affine(ones, values)
    if node.op_type == "Sub":
        return Affine(ones, -values) if constant_at == 1 else Affine(-ones, values)
    if node.op_type == "Div" and constant_at == 1:
        with np.errstate(all="ignore"):
            return Affine(1 / values, zeros)
    return None


def constant_of(value: ir.Value | None) -> Floats | None:
    """Return a constant as float64, or None where a value is no constant of floats."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    if not value.const_value.dtype.is_floating_point():
        return None
    table: NDArray[Any] = value.const_value.numpy()
    return table.astype(np.float64)


def per_channel(table: Floats, layout: Layout) -> Floats | None:
    """Return an operand as (C,) where it broadcasts along the channels alone, else None."""
    rank = layout.rank if layout.rank is not None else 1
    if table.ndim > rank:
        return None
    shape = [1] * (rank - table.ndim) + list(table.shape)
    channels = shape.pop(layout.axis)
    if any(size != 1 for size in shape) or channels not in (1, layout.channels):
        return None
    return np.broadcast_to(table.reshape(-1), (layout.channels,))


def _integer(node: ir.Node, name: str, default: int) -> int:
    given = node.attributes.get(name)
    return default if given is None else given.as_int()
