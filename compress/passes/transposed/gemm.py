"""Write a ConvTranspose as MatMul and Col2Im, an operator since opset 18."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.passes.draft import Draft

from .layer import Layer

__all__ = ["write_gemm"]


def write_gemm(draft: Draft, source: str, layer: Layer, *, weights_last: bool) -> str:
    """Append one column of taps per input, and their sums; return the result's name.

    Args:
        draft: what the operators are appended to.
        source: name of the input.
        layer: the ConvTranspose.
        weights_last: whether they are MatMul's second operand, as integer kernels want them; it
            takes two Transposes more.
    """
    geometry = layer.geometry
    channels = [geometry.inputs]
    if geometry.group > 1:
        channels = [geometry.group, geometry.inputs // geometry.group]
    flat = _reshape(draft, source, [0, *channels, -1], "inputs")
    weight = layer.weight.reshape(*channels, -1)
    columns = _product(draft, flat, weight, weights_last=weights_last)
    if geometry.group > 1:
        taps = geometry.outputs * int(np.prod(layer.weight.shape[2:]))
        columns = _reshape(draft, columns, [0, taps, -1], "columns")
    return _with_bias(draft, _add_up(draft, columns, source, layer), layer)


def _product(draft: Draft, flat: str, weight: NDArray[Any], *, weights_last: bool) -> str:
    """Return (N, groups..., taps, inputs) of (N, groups..., channels, inputs)."""
    if not weights_last:
        turned = draft.constant(np.swapaxes(weight, -1, -2), "weight")
        return draft.add("MatMul", turned, flat)
    rank = weight.ndim + 1
    perm = [*range(rank - 2), rank - 1, rank - 2]
    rows = draft.add("Transpose", flat, perm=perm)
    made = draft.add("MatMul", rows, draft.constant(weight, "weight"))
    return draft.add("Transpose", made, perm=perm)


def _add_up(draft: Draft, columns: str, source: str, layer: Layer) -> str:
    axes = layer.geometry.axes
    kernel = draft.constant(np.array([axis.kernel for axis in axes], np.int64), "kernel")
    return draft.add(
        "Col2Im",
        columns,
        _image_shape(draft, source, layer),
        kernel,
        dilations=[axis.dilation for axis in axes],
        pads=[*(axis.begin for axis in axes), *(axis.end for axis in axes)],
        strides=[axis.stride for axis in axes],
    )


def _image_shape(draft: Draft, source: str, layer: Layer) -> str:
    """Return the name of the output's spatial sizes, computed where the input's are not known."""
    sizes = [size for size in layer.sizes if size is not None]
    if len(sizes) == len(layer.sizes):
        return draft.constant(np.array(layer.geometry.output_sizes(sizes), np.int64), "image")
    growth = np.array([axis.growth for axis in layer.geometry.axes], np.int64)
    strides = np.array(layer.geometry.strides, np.int64)
    spatial = draft.add("Shape", source, start=2)
    scaled = draft.add("Mul", spatial, draft.constant(strides, "strides"))
    return draft.add("Add", scaled, draft.constant(growth, "growth"))


def _with_bias(draft: Draft, value: str, layer: Layer) -> str:
    if layer.bias is None:
        return value
    bias = layer.bias.reshape(-1, *[1] * len(layer.geometry.axes))
    return draft.add("Add", value, draft.constant(bias, "bias"))


def _reshape(draft: Draft, value: str, sizes: list[int], name: str) -> str:
    return draft.add("Reshape", value, draft.constant(np.array(sizes, np.int64), f"as_{name}"))
