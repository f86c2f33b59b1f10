"""Conv, ConvTranspose, Gemm and MatMul with constant weights, and how they take in channel maps.

With weights W and bias b, a map of the outputs gives s (W x + b) + t = (s W) x + (s b + t), and one
of the inputs W (s x + t) + b = (W s) x + (W t + b). The latter holds where every output sees a
whole kernel of shifted inputs, so not with zero padding unless t = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .affine import Affine, Floats, Layout, constant_of, per_channel

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["LINEAR", "Linear", "read_linear"]

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Linear:
    """The arithmetic of one linear operator.

    Attributes:
        op: its type.
        weights: float64 (groups, first, second, kernel...), one of the middle two being the
            outputs of a group, the other its inputs.
        shape: of the weights as the operator holds them.
        bias: float64 (outputs,), or None.
        gain: factor on the products, Gemm's alpha.
        outputs_first: whether axis 1 of `weights` is the outputs.
        axis, rank: of the channels and of the whole tensors; see Layout.
        takes_shifts: whether a shift of its inputs is a shift of its outputs.
    """

    op: str
    weights: Floats
    shape: tuple[int, ...]
    bias: Floats | None
    gain: float
    outputs_first: bool
    axis: int
    rank: int | None
    takes_shifts: bool

    @property
    def outputs(self) -> Layout:
        """Where its output channels stand."""
        groups, first, second = self.weights.shape[:3]
        return Layout(groups * (first if self.outputs_first else second), self.axis, self.rank)

    @property
    def inputs(self) -> Layout:
        """Where its input channels stand."""
        groups, first, second = self.weights.shape[:3]
        return Layout(groups * (second if self.outputs_first else first), self.axis, self.rank)

    def then(self, affine: Affine) -> Linear:
        """Return the operator followed by a map of its outputs."""
        axis = 1 if self.outputs_first else 2
        bias = affine.shift if self.bias is None else affine.scale * self.bias + affine.shift
        return replace(
            self,
            weights=self.weights * self._spread(affine.scale, axis),
            bias=bias if self.bias is not None or affine.has_shift else None,
        )

    def after(self, affine: Affine) -> Linear | None:
        """Return the operator preceded by a map of its inputs, or None where it is not linear."""
        if affine.has_shift and not self.takes_shifts:
            return None
        axis = 2 if self.outputs_first else 1
        bias = self.bias
        if affine.has_shift:
            others = (axis, *range(3, self.weights.ndim))
            moved = (self.weights * self._spread(affine.shift, axis)).sum(axis=others).ravel()
            bias = self.gain * moved + (0 if bias is None else bias)
        return replace(self, weights=self.weights * self._spread(affine.scale, axis), bias=bias)

    def _spread(self, values: Floats, axis: int) -> Floats:
        """Shape one number per channel so that it multiplies an axis of the grouped weights."""
        shape = [1] * self.weights.ndim
        shape[0], shape[axis] = self.weights.shape[0], self.weights.shape[axis]
        return values.reshape(shape)


def read_linear(node: ir.Node) -> Linear | None:
    """Return the arithmetic of a node, or None where its weights or bias are not constant."""
    weights = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if weights is None or not weights.size:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        linear = _read_convolution(node, weights)
    elif node.op_type == "Gemm":
        linear = _read_gemm(node, weights)
    else:
        linear = _read_matmul(node, weights)
    if linear is None or len(node.inputs) < 3 or node.inputs[2] is None:
        return linear
    return _with_bias(linear, node)


def _read_convolution(node: ir.Node, weights: Floats) -> Linear | None:
    given = node.attributes.get("group")
    groups = 1 if given is None else given.as_int()
    if weights.ndim < 3 or weights.shape[0] % groups:
        return None
    grouped = weights.reshape(groups, weights.shape[0] // groups, *weights.shape[1:])
    is_plain = node.op_type == "Conv"
    return Linear(
        op=node.op_type,
        weights=grouped,
        shape=weights.shape,
        bias=None,
        gain=1.0,
        outputs_first=is_plain,
        axis=1,
        rank=weights.ndim,
        takes_shifts=is_plain and not _is_padded(node),
    )


def _is_padded(node: ir.Node) -> bool:
    mode, pads = node.attributes.get("auto_pad"), node.attributes.get("pads")
    if mode is not None and mode.as_string() not in ("NOTSET", "VALID"):
        return True
    return pads is not None and any(pads.as_ints())


def _read_gemm(node: ir.Node, weights: Floats) -> Linear | None:
    attributes = {name: each.value for name, each in node.attributes.items()}
    if weights.ndim != 2 or attributes.get("transA", 0):
        return None
    return Linear(
        op="Gemm",
        weights=weights[np.newaxis],
        shape=weights.shape,
        bias=None,
        gain=float(attributes.get("alpha", 1.0)),
        outputs_first=bool(attributes.get("transB", 0)),
        axis=1,
        rank=2,
        takes_shifts=True,
    )


def _read_matmul(node: ir.Node, weights: Floats) -> Linear | None:
    left = node.inputs[0]
    if weights.ndim != 2 or left is None:
        return None
    rank = None if left.shape is None else len(left.shape)
    return Linear(
        op="MatMul",
        weights=weights[np.newaxis],
        shape=weights.shape,
        bias=None,
        gain=1.0,
        outputs_first=False,
        axis=-1 if rank is None else rank - 1,
        rank=rank,
        takes_shifts=True,
    )


def _with_bias(linear: Linear, node: ir.Node) -> Linear | None:
    """Read the bias; Gemm's beta goes into it, and one that differs from row to row is refused."""
    table = constant_of(node.inputs[2])
    bias = None if table is None else per_channel(table, Layout(linear.outputs.channels, -1, 2))
    if bias is None:
        return None
    beta = node.attributes.get("beta")
    return replace(linear, bias=bias if beta is None else bias * beta.as_float())
