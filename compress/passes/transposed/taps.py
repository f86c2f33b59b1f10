"""Which tap of a transposed kernel stands where in the kernel of a Conv, along one axis.

Outputs are taken in blocks of `stride`: output o + start = stride*q + r is phase r of block q. Tap
t reaches it from input i = q + (r - start + begin - dilation*t) / stride, wherever that is whole.
The difference i - q is the tap's offset, the same for every block: so each phase is a Conv over the
inputs, and all phases together are one Conv with `stride` times the channels.

Example: kernel 4, stride 2, begin 1. With start 0 the offsets are {0, -1} for phase 0 and {1, 0}
for phase 1, so one Conv over both needs 3 positions. With start 1 both have {0, -1}: 2 positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .geometry import Axis

__all__ = [
    "NO_TAP",
    "AxisConv",
    "gather_taps",
    "one_phase",
    "smallest_block_start",
    "uncut_phases_start",
    "whole_block",
]

NO_TAP = -1


@dataclass(frozen=True)
class AxisConv:
    """The Conv that makes some phases of all blocks, along one axis.

    Attributes:
        table: by phase and position, the tap that stands there, or NO_TAP.
        dilation: distance of neighbouring positions.
        pads: zeros before and after the input; a negative number takes inputs away.
        crop: outputs to cut off before and after once the phases are interleaved.
        extra_blocks: number of blocks beyond that of the inputs.
    """

    table: tuple[tuple[int, ...], ...]
    dilation: int
    pads: tuple[int, int]
    crop: tuple[int, int]
    extra_blocks: int

    @property
    def positions(self) -> int:
        """Size of the kernel."""
        return len(self.table[0])


def whole_block(axis: Axis, start: int = 0) -> AxisConv:
    """Return the Conv that makes all phases; `start` in [0, stride) outputs are made in vain."""
    return _conv(axis, start, range(axis.stride))


def one_phase(axis: Axis, start: int, phase: int) -> AxisConv:
    """Return the Conv that makes one phase of all blocks: no position is without a tap."""
    return _conv(axis, start, [phase])


def smallest_block_start(axis: Axis) -> int:
    """Return the start with the smallest Conv for a whole block; then the lowest crop."""
    convs = [whole_block(axis, start) for start in range(axis.stride)]
    costs = [(conv.positions, sum(conv.crop)) for conv in convs]
    return costs.index(min(costs))


def uncut_phases_start(axis: Axis) -> int:
    """Return the start at which the fewest phases take inputs away; then the lowest crop."""

    def cost(start: int) -> tuple[int, int]:
        convs = [one_phase(axis, start, phase) for phase in range(axis.stride)]
        return sum(min(conv.pads) < 0 for conv in convs), sum(convs[0].crop)

    return min(range(axis.stride), key=cost)


def _conv(axis: Axis, start: int, phases: Sequence[int]) -> AxisConv:
    offsets = [_offsets(axis, phase - start + axis.begin) for phase in phases]
    blocks = -(-(start + axis.growth) // axis.stride)
    low, high = _span(axis, offsets, blocks)
    step = math.gcd(*(each - low for each in (*itertools.chain(*offsets), high))) or 1
    places = range(low, high + 1, step)
    table = tuple(tuple(each.get(place, NO_TAP) for place in places) for each in offsets)
    crop = (start, axis.stride * blocks - start - axis.growth)
    return AxisConv(table, step, (-low, blocks + high), crop, blocks)


def _span(axis: Axis, offsets: Sequence[dict[int, int]], blocks: int) -> tuple[int, int]:
    """Return the first and last offset of the kernel.

    It is widened by zeros where the inputs to take away could be all that there are: a Slice cannot
    take away more.
    """
    union = set().union(*offsets) or {0}
    low, high = min(union), max(union)
    cut = max(low, 0) + max(-(blocks + high), 0)
    fewest_inputs = max(1, -(-(1 - axis.growth) // axis.stride))  # for an output of at least 1
    return (low, high) if cut < fewest_inputs else (min(low, 0), max(high, -blocks))


def _offsets(axis: Axis, shift: int) -> dict[int, int]:
    """Return the taps that reach a phase, by their offsets."""
    distances = {tap: shift - axis.dilation * tap for tap in range(axis.kernel)}
    return {far // axis.stride: tap for tap, far in distances.items() if far % axis.stride == 0}


def gather_taps(weight: NDArray[np.floating], convs: Sequence[AxisConv]) -> NDArray[np.floating]:
    """Return a transposed weight's taps in the places that `convs` give them, zeros elsewhere.

    Args:
        weight: (inputs, outputs / group, kernel...).
        convs: one per spatial axis.

    Returns:
        Array of the weight's dtype, (inputs, outputs / group, phases..., positions...).
    """
    rank = len(convs)
    taken = np.pad(weight, [(0, 0)] * 2 + [(0, 1)] * rank)  # NO_TAP reads the zeros at the end
    for index, conv in enumerate(convs):
        taken = np.take(taken, np.array(conv.table), axis=2 + 2 * index)
    phases = [2 + 2 * index for index in range(rank)]
    return taken.transpose(0, 1, *phases, *(axis + 1 for axis in phases))
