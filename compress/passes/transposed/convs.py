"""Write the forms that consist of Convs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.passes.draft import Draft

from .geometry import Geometry
from .interleave import Phases, Spelling, interleave
from .layer import Layer
from .taps import (
    AxisConv,
    gather_taps,
    one_phase,
    smallest_block_start,
    uncut_phases_start,
    whole_block,
)

__all__ = ["Convs", "block_convs", "cropped_convs", "phase_convs", "write_convs"]

Convs = list[tuple[AxisConv, ...]]
TO_THE_END = np.iinfo(np.int64).max


def block_convs(geometry: Geometry) -> Convs:
    """Return one Conv for all phases, by axis; nothing is cut off before the first output."""
    return [tuple(whole_block(axis) for axis in geometry.axes)]


def cropped_convs(geometry: Geometry) -> Convs:
    """Return one Conv for all phases, by axis, with the smallest kernel that some start gives."""
    return [tuple(whole_block(axis, smallest_block_start(axis)) for axis in geometry.axes)]


def phase_convs(geometry: Geometry) -> Convs:
    """Return one Conv per phase, the first axis slowest."""
    by_axis = [
        [one_phase(axis, uncut_phases_start(axis), phase) for phase in range(axis.stride)]
        for axis in geometry.axes
    ]
    return list(itertools.product(*by_axis))


def write_convs(draft: Draft, source: str, layer: Layer, convs: Convs, spelling: Spelling) -> str:
    """Append the Convs and what puts their outputs in place; return the result's name."""
    geometry = layer.geometry
    are_first = len(convs) > 1 or geometry.group == 1
    made = [_conv(draft, source, layer, conv, phases_first=are_first) for conv in convs]
    value = made[0] if len(made) == 1 else draft.add("Concat", *made, axis=1)
    if geometry.phases > 1:
        blocks = tuple(
            None if size is None else size + conv.extra_blocks
            for size, conv in zip(layer.sizes, convs[0], strict=True)
        )
        phases = Phases(geometry.strides, geometry.outputs, blocks, are_first)
        value = interleave(draft, value, phases, spelling)
    return _cut(draft, value, [conv.crop for conv in convs[0]])


def _conv(
    draft: Draft, source: str, layer: Layer, convs: Sequence[AxisConv], *, phases_first: bool
) -> str:
    """Append one Conv; where its pads are negative, a Slice takes inputs away first."""
    value = _cut(draft, source, [tuple(max(-pad, 0) for pad in conv.pads) for conv in convs])
    stem = str(len(draft.nodes))
    weight = conv_weight(layer, convs, phases_first=phases_first)
    inputs = [draft.constant(weight, f"weight_{stem}")]
    if layer.bias is not None:
        count = len(weight) // len(layer.bias)
        spread = np.tile if phases_first else np.repeat
        inputs.append(draft.constant(spread(layer.bias, count), f"bias_{stem}"))
    pads = [[max(conv.pads[side], 0) for conv in convs] for side in (0, 1)]
    return draft.add(
        "Conv",
        value,
        *inputs,
        dilations=[conv.dilation for conv in convs],
        group=layer.geometry.group,
        kernel_shape=[conv.positions for conv in convs],
        pads=[*pads[0], *pads[1]],
        strides=[1] * len(convs),
    )


def conv_weight(layer: Layer, convs: Sequence[AxisConv], *, phases_first: bool) -> NDArray[Any]:
    """Return the weight of a Conv: (phases * outputs, inputs / group, positions...).

    Args:
        layer: whose taps are taken.
        convs: where they go, by axis.
        phases_first: whether its outputs are (phase, channel), for one group or one phase, instead
            of (channel, phase).
    """
    taps = gather_taps(layer.weight, convs)
    group, kernel = layer.geometry.group, [conv.positions for conv in convs]
    phases = math.prod(len(conv.table) for conv in convs)
    grouped = taps.reshape(group, -1, taps.shape[1], phases, *kernel)
    order = (3, 0, 2, 1) if phases_first else (0, 2, 3, 1)
    sorted_taps = grouped.transpose(*order, *range(4, grouped.ndim))
    return sorted_taps.reshape(phases * layer.geometry.outputs, grouped.shape[1], *kernel)


def _cut(draft: Draft, value: str, margins: Sequence[tuple[int, ...]]) -> str:
    """Append a Slice that takes (before, after) entries off every spatial axis, if any is."""
    cut = {2 + index: margin for index, margin in enumerate(margins) if any(margin)}
    if not cut:
        return value
    stem = str(len(draft.nodes))
    starts = [before for before, _ in cut.values()]
    ends = [-after or TO_THE_END for _, after in cut.values()]
    names = [
        draft.constant(np.array(numbers, np.int64), f"{kind}_{stem}")
        for kind, numbers in (("starts", starts), ("ends", ends), ("axes", list(cut)))
    ]
    return draft.add("Slice", value, *names)
