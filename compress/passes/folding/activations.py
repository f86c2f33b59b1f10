"""Activations that exporters write out, as the operators that ONNX Runtime takes into a Conv.

ONNX Runtime 1.32 runs Conv and HardSwish, or HardSigmoid, as one operator, and blocked (NCHWc) too.
Add, Clip, Mul and Div are operators of their own there, each between two changes of layout.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from .affine import constant_of
from .gate import HARD_SWISH, Gate, follows_linear, read_gate, unit_ramp
from .ramp import readings
from .rewriting import Writer, rewrite, standing

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["is_float32", "name_activations"]

TOLERANCE = 1e-6  # relative; float32 holds no more
SIZE = 2  # nodes of a HardSwish


def name_activations(model: ModelProto) -> tuple[ModelProto, int]:
    """Write HardSigmoid, LeakyRelu and GlobalAveragePool for what computes them.

    Returns:
        The graph, and how many were written. A factor on the way into an activation stands behind
        the Conv or Gemm before it as a Mul, for `absorb_affine` to take in.
    """
    return rewrite(model, _name_all)


def is_float32(value: ir.Value) -> bool:
    """Whether a value is known to hold float32."""
    import onnx_ir as ir

    return bool(value.dtype == ir.DataType.FLOAT)


def _name_all(graph: ir.Graph) -> int:
    count = sum(_name_gate(graph, node) for node in standing(graph))
    count += sum(_name_ramp(graph, node) for node in standing(graph, backwards=True))
    count += sum(_name_leaky_relu(graph, node) for node in standing(graph))
    return count + sum(_name_pooling(graph, node) for node in standing(graph))


def _name_gate(graph: ir.Graph, node: ir.Node) -> bool:
    """Write HardSwish, as Mul and HardSigmoid, for a product of x and a ramp of x."""
    gate = read_gate(node)
    if gate is None or not is_float32(gate.source):
        return False
    size = SIZE if math.isclose(gate.gain, 1, rel_tol=TOLERANCE) else SIZE + 1
    is_named = any(each.op_type == "HardSigmoid" for each in gate.nodes)
    if len(gate.nodes) < size + is_named:
        return False
    writer = Writer(graph, gate.output)
    made, gain = _write_gate(writer, gate)
    if not math.isclose(gain, 1, rel_tol=TOLERANCE):
        writer.add("Mul", made, gain)
    writer.replace(gate.nodes)
    return True


def _write_gate(writer: Writer, gate: Gate) -> tuple[ir.Value, float]:
    """Write Mul and HardSigmoid; return the value made, and the gain still missing.

    With c = 6 slope, gain x clip(slope x + 1/2, 0, 1) = gain / c HardSwish(c x).
    """
    source, slope, gain = gate.source, gate.slope, gate.gain
    factor = slope / HARD_SWISH.slope
    is_swish = math.isclose(gate.offset, HARD_SWISH.offset, rel_tol=TOLERANCE)
    is_whole = math.isclose(factor, 1, rel_tol=TOLERANCE)
    if is_swish and not is_whole and follows_linear(source, *gate.nodes):
        source, slope, gain = writer.add("Mul", source, factor), HARD_SWISH.slope, gain / factor
    attributes = {"alpha": slope, "beta": gate.offset}
    return writer.add("Mul", source, writer.add("HardSigmoid", source, attributes=attributes)), gain


def _name_ramp(graph: ir.Graph, node: ir.Node) -> bool:
    """Write HardSigmoid, with a Mul behind it where need be, for the longest chain that is one."""
    target = node.outputs[0]
    for found in reversed([*readings(target)]):
        unit = unit_ramp(found.ramp)
        if unit is None or not is_float32(found.source):
            continue
        gain, slope, offset = unit
        is_whole = math.isclose(gain, 1, rel_tol=TOLERANCE)
        if len(found.nodes) <= (1 if is_whole else 2):
            continue
        writer = Writer(graph, target)
        made = writer.add("HardSigmoid", found.source, attributes={"alpha": slope, "beta": offset})
        if not is_whole:
            writer.add("Mul", made, gain)
        writer.replace(found.nodes)
        return True
    return False


def _name_leaky_relu(graph: ir.Graph, node: ir.Node) -> bool:
    """Write LeakyRelu for a PRelu whose slopes are one number."""
    if node.op_type != "PRelu" or node.inputs[0] is None:
        return False
    slopes = constant_of(node.inputs[1])
    if slopes is None or not slopes.size or not np.all(slopes == slopes.flat[0]):
        return False
    writer = Writer(graph, node.outputs[0])
    writer.add("LeakyRelu", node.inputs[0], attributes={"alpha": float(slopes.flat[0])})
    writer.replace([node])
    return True


def _name_pooling(graph: ir.Graph, node: ir.Node) -> bool:
    """Write GlobalAveragePool, and Flatten where axes go, for a mean over all spatial axes."""
    source = node.inputs[0] if node.op_type == "ReduceMean" else None
    if source is None or source.shape is None or len(source.shape) < 3 or not is_float32(source):
        return False
    rank = len(source.shape)
    axes = _axes(node)
    if axes is None or sorted(axis % rank for axis in axes) != [*range(2, rank)]:
        return False
    keeps = node.attributes.get("keepdims")
    writer = Writer(graph, node.outputs[0])
    made = writer.add("GlobalAveragePool", source)
    if keeps is not None and not keeps.as_int():
        writer.add("Flatten", made, attributes={"axis": 1})
    writer.replace([node])
    return True


def _axes(node: ir.Node) -> list[int] | None:
    """Return the axes that a reduction names, an attribute before opset 18 and an input since."""
    given = node.attributes.get("axes")
    if given is not None:
        return [*given.as_ints()]
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return [int(axis) for axis in value.const_value.numpy().ravel()]
