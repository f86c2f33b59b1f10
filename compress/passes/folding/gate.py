"""y = gain * x * clip(slope * x + offset, 0, 1): HardSwish, in any of its spellings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .linear import read_linear
from .ramp import Ramp, Reading, is_only_read_by, operands, readings

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["HARD_SWISH", "Gate", "follows_linear", "read_gate", "read_hard_swish", "unit_ramp"]

HARD_SWISH = Ramp(1 / 6, 0.5, 0, 1)


@dataclass(frozen=True)
class Gate:
    """A value that is multiplied by a ramp of itself.

    Attributes:
        source: x.
        gain: factor of the product.
        slope: of the ramp, above zero.
        offset: of the ramp.
        output: y.
        nodes: the operators that it takes the place of, the last one first.
    """

    source: ir.Value
    gain: float
    slope: float
    offset: float
    output: ir.Value
    nodes: tuple[ir.Node, ...]


def read_gate(product: ir.Node) -> Gate | None:
    """Return what a Mul of two values and a scaling behind it compute, or None."""
    if product.op_type != "Mul" or None in product.inputs or len(product.inputs) != 2:
        return None
    first, second = product.inputs
    assert first is not None
    assert second is not None
    for plain, gated in ((first, second), (second, first)):
        for left in _scalings(plain):
            for right in readings(gated):
                found = _joined(left, right, product) if right.source is left.source else None
                if found is not None:
                    return _with_scaling_behind(found)
    return None


def read_hard_swish(node: ir.Node) -> Gate | None:
    """Return what ONNX's own HardSwish computes; None of another operator."""
    source = node.inputs[0] if node.op_type == "HardSwish" else None
    if source is None:
        return None
    return Gate(source, 1.0, HARD_SWISH.slope, HARD_SWISH.offset, node.outputs[0], (node,))


def unit_ramp(ramp: Ramp) -> tuple[float, float, float] | None:
    """Return gain, slope and offset of gain * clip(slope * x + offset, 0, 1), or None."""
    if ramp.low != 0 or not 0 < ramp.high < float("inf") or ramp.slope <= 0:
        return None
    return ramp.high, ramp.slope / ramp.high, ramp.offset / ramp.high


def follows_linear(value: ir.Value, *readers: ir.Node) -> bool:
    """Whether a linear operator makes a value for these readers alone, so a factor goes into it."""
    node = value.producer()
    if node is None or not is_only_read_by(value, *readers):
        return False
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or read_linear(node) is None:
        return False
    weights = node.inputs[1]
    return weights is not None and len(weights.uses()) == 1


def _scalings(value: ir.Value) -> Iterator[Reading]:
    """Yield a value as a multiple of itself and, where a Mul or Div made it, of its source."""
    for found in readings(value):
        if found.ramp != Ramp(slope=found.ramp.slope) or found.ramp.slope <= 0:
            return
        yield found


def _joined(left: Reading, right: Reading, product: ir.Node) -> Gate | None:
    unit = unit_ramp(right.ramp)
    factors = [side.nodes[0].outputs[0] for side in (left, right) if side.nodes]
    if unit is None or not all(is_only_read_by(each, product) for each in factors):
        return None
    gain, slope, offset = unit
    nodes = (product, *left.nodes, *right.nodes)
    return Gate(left.source, gain * left.ramp.slope, slope, offset, product.outputs[0], nodes)


def _with_scaling_behind(gate: Gate) -> Gate:
    """Take in a Mul or Div by a number above zero, where it alone reads the product."""
    if gate.output.is_graph_output() or len(gate.output.uses()) != 1:
        return gate
    node = next(iter(gate.output.consumers()))
    found = operands(node) if node.op_type in ("Mul", "Div") else None
    if found is None or found[1] <= 0 or node.inputs[0] is not gate.output:
        return gate
    factor = found[1] if node.op_type == "Mul" else 1 / found[1]
    return replace(gate, gain=gate.gain * factor, output=node.outputs[0], nodes=(node, *gate.nodes))
