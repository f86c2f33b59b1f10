"""What an output of a Conv, Gemm or MatMul sees of its inputs, as rows of a matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

__all__ = ["input_rows"]

Array = NDArray[Any]


def input_rows(
    node: NodeProto, values: Array, kernel: Sequence[int], *, most: int, seed: int | Sequence[int]
) -> Array:
    """Return what some outputs see, (groups, rows, inputs of one output).

    The layer's outputs are these rows times the transposed weights of a group, (outputs, inputs).

    Args:
        node: Conv; or Gemm without transA, or MatMul with constant weights, whose rows are whole.
        values: its input, floats; Conv: (N, C, spatial...), else (..., inputs).
        kernel: Conv's spatial sizes.
        most: number of rows; which ones of more is drawn without repetition.
        seed: of that draw.
    """
    picks = np.random.default_rng(seed)
    if node.op_type != "Conv":
        rows = values.reshape(-1, values.shape[-1])
        return rows[_some(len(rows), most, picks)][np.newaxis]
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    windows = _windows(values, kernel, given)
    places = windows.shape[: 1 + len(kernel)]
    chosen = np.unravel_index(_some(math.prod(places), most, picks), places)
    groups = given.get("group", 1)
    grouped: Array = windows[chosen].reshape(len(chosen[0]), groups, -1)
    return grouped.transpose(1, 0, 2)


def _some(count: int, most: int, picks: np.random.Generator) -> NDArray[np.intp]:
    """Return indices below `count`, in rising order: all, or `most` of them."""
    if count <= most:
        return np.arange(count)
    return np.sort(picks.choice(count, most, replace=False))


def _windows(values: Array, kernel: Sequence[int], given: Mapping[str, Any]) -> Array:
    """Return a view (N, output places..., C, kernel...) of a Conv's padded input."""
    ones = [1] * len(kernel)
    strides, dilations = given.get("strides", ones), given.get("dilations", ones)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = list(_pads(values.shape[2:], reach, strides, given))
    padded = np.pad(values, [(0, 0), (0, 0), *pads])
    spatial = tuple(range(2, 2 + len(kernel)))
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=spatial)
    steps = [slice(None, None, step) for step in (*strides, *dilations)]
    return np.moveaxis(view[:, :, *steps], 1, 1 + len(kernel))


def _pads(
    sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int], given: Mapping[str, Any]
) -> Iterator[tuple[int, int]]:
    """Yield the zeros before and behind each spatial axis, as ONNX defines auto_pad."""
    mode = given.get("auto_pad", b"NOTSET").decode()
    explicit = given.get("pads", [0] * 2 * len(sizes))
    for axis, (size, window, stride) in enumerate(zip(sizes, reach, strides, strict=True)):
        if mode == "NOTSET":
            yield explicit[axis], explicit[axis + len(sizes)]
            continue
        outputs = math.ceil(size / stride)
        total = max((outputs - 1) * stride + window - size, 0) if mode != "VALID" else 0
        less = total // 2
        yield (less, total - less) if mode == "SAME_UPPER" else (total - less, less)
