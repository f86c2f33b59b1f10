"""What a ConvTranspose does along each spatial axis, in whole numbers.

Along one axis, tap t of the kernel carries input i to output o = stride*i + dilation*t - begin. The
output has stride*(inputs - 1) + reach + output_padding - begin - end entries, where reach =
dilation*(kernel - 1) + 1 (ONNX operator text, ConvTranspose).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto, helper

__all__ = ["Axis", "Geometry", "read_geometry"]

LARGEST_RANK = 2
AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a ConvTranspose.

    Attributes:
        kernel: number of taps.
        stride: distance of the outputs of neighbouring inputs.
        dilation: distance of the outputs of neighbouring taps.
        begin: outputs cut off at the start; negative ones are added.
        end: outputs cut off at the end.
        output_padding: outputs added at the end.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1
    begin: int = 0
    end: int = 0
    output_padding: int = 0

    @property
    def reach(self) -> int:
        """Number of outputs from those of the first tap to those of the last."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def growth(self) -> int:
        """What the output has beyond stride times the input."""
        return self.reach + self.output_padding - self.begin - self.end - self.stride


@dataclass(frozen=True)
class Geometry:
    """A ConvTranspose without its weights: one Axis per spatial axis, and its channels."""

    axes: tuple[Axis, ...]
    inputs: int
    outputs: int
    group: int = 1

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of all axes."""
        return tuple(axis.stride for axis in self.axes)

    @property
    def phases(self) -> int:
        """Number of outputs per input, all axes together."""
        return math.prod(self.strides)

    def output_sizes(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial sizes of the output for those of the input."""
        return tuple(
            axis.stride * size + axis.growth for axis, size in zip(self.axes, sizes, strict=True)
        )


def read_geometry(
    node: NodeProto, weight_shape: Sequence[int], sizes: Sequence[int | None] | None = None
) -> Geometry | str:
    """Return the geometry of a ConvTranspose node, or the reason why it has none.

    Args:
        node: the node.
        weight_shape: (inputs, outputs / group, kernel...).
        sizes: spatial sizes of the input where they are known; `output_shape` needs them.
    """
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    rank = len(weight_shape) - 2
    if not 1 <= rank <= LARGEST_RANK:
        return f"it has {rank} spatial axes; 1 and 2 are covered"
    kernel = tuple(weight_shape[2:])
    group = given.get("group", 1)
    fault = _fault(given, kernel, inputs=weight_shape[0], group=group)
    if fault:
        return fault
    axes = tuple(_read_axis(given, kernel, index) for index in range(rank))
    padded = _with_pads(axes, given, sizes)
    if isinstance(padded, str):
        return padded
    return Geometry(padded, weight_shape[0], weight_shape[1] * group, group)


def _fault(given: dict[str, Any], kernel: tuple[int, ...], *, inputs: int, group: int) -> str:
    """Return what is wrong with the attributes, or nothing."""
    rank = len(kernel)
    names = ("strides", "dilations", "output_padding", "output_shape")
    lengths = {name: rank for name in names} | {"pads": 2 * rank}
    for name, length in lengths.items():
        if name in given and len(given[name]) != length:
            return f"{name} has {len(given[name])} entries; it must have {length}"
    if tuple(given.get("kernel_shape", kernel)) != kernel:
        return f"kernel_shape is {given['kernel_shape']}, but the weights are of {list(kernel)}"
    if group < 1 or inputs % group:
        return f"group is {group}, which does not divide {inputs} input channels"
    if min((*kernel, *given.get("strides", ()), *given.get("dilations", ()))) < 1:
        return "its kernel, strides and dilations must be at least 1"
    mode = _auto_pad(given)
    return "" if mode in AUTO_PADS else f"auto_pad is {mode}; known are {', '.join(AUTO_PADS)}"


def _auto_pad(given: dict[str, Any]) -> str:
    return bytes(given.get("auto_pad", b"NOTSET")).decode()


def _read_axis(given: dict[str, Any], kernel: tuple[int, ...], index: int) -> Axis:
    rank = len(kernel)
    pads = given.get("pads", [0] * 2 * rank) if _auto_pad(given) == "NOTSET" else [0] * 2 * rank
    return Axis(
        kernel[index],
        given.get("strides", [1] * rank)[index],
        given.get("dilations", [1] * rank)[index],
        pads[index],
        pads[index + rank],
        given.get("output_padding", [0] * rank)[index],
    )


def _with_pads(
    axes: tuple[Axis, ...], given: dict[str, Any], sizes: Sequence[int | None] | None
) -> tuple[Axis, ...] | str:
    """Return the axes with the pads that `output_shape` or `auto_pad` ask for."""
    mode, wanted = _auto_pad(given), given.get("output_shape", [])
    if wanted:
        if sizes is None or None in sizes:
            return "output_shape gives its pads, and the size of its input is not known"
        surplus = [
            axis.stride * int(size or 0) + axis.growth + axis.begin + axis.end - target
            for axis, size, target in zip(axes, sizes, wanted, strict=True)
        ]
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        surplus = [axis.growth for axis in axes]
    else:
        return axes
    if min(surplus) < 0:
        return "its output is larger than its taps reach, which ONNX leaves undefined"
    return tuple(_split_pad(axis, total, mode) for axis, total in zip(axes, surplus, strict=True))


def _split_pad(axis: Axis, total: int, mode: str) -> Axis:
    """Return the axis with `total` outputs cut off, the odd one at the end for SAME_UPPER alone."""
    begin = total // 2 if mode == "SAME_UPPER" else total - total // 2
    return Axis(axis.kernel, axis.stride, axis.dilation, begin, total - begin, axis.output_padding)
