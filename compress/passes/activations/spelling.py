"""HardSwish and HardSigmoid as Add, Clip and Mul, and Sub and Div as Add and Mul.

ONNX Runtime 1.32 has integer kernels for Add and Mul, and a Clip behind one of them vanishes into
its quantization. Factors stand where a Conv or Gemm takes them in: with c = sqrt(gain * slope),

    gain * x * clip(slope * x + offset, 0, 1) = u * clip(u + offset * c / slope, 0, c / slope)

for u = c * x, so only x is scaled, and nothing is left behind.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnx import ModelProto

from aigc_compress.passes.folding.activations import is_float32
from aigc_compress.passes.folding.gate import Gate, follows_linear, read_gate, read_hard_swish
from aigc_compress.passes.folding.ramp import operands
from aigc_compress.passes.folding.rewriting import Writer, rewrite, standing

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["spell_for_integers"]


def spell_for_integers(model: ModelProto) -> tuple[ModelProto, int]:
    """Write activations in operators with integer kernels, from opset 11 on; return how many.

    A factor on the way into one, or out of it, stands as a Mul beside the Conv or Gemm that
    `absorb_affine` takes it into.
    """
    return rewrite(model, _spell_all)


def _spell_all(graph: ir.Graph) -> int:
    count = sum(_spell_gate(graph, node) for node in standing(graph))
    count += sum(_spell_hard_sigmoid(graph, node) for node in standing(graph))
    return count + sum(_spell_inverse(graph, node) for node in standing(graph))


def _spell_gate(graph: ir.Graph, node: ir.Node) -> bool:
    gate = read_hard_swish(node) or read_gate(node)
    if gate is None or not is_float32(gate.source) or gate.gain <= 0:
        return False
    if all(each.op_type not in ("HardSigmoid", "HardSwish") for each in gate.nodes):
        return False
    writer = Writer(graph, gate.output)
    if follows_linear(gate.source, *gate.nodes):
        _write_scaled_source(writer, gate)
    else:
        _write_scaled_product(writer, gate)
    writer.replace(gate.nodes)
    return True


def _write_scaled_source(writer: Writer, gate: Gate) -> None:
    """Write the form whose factor goes into the operator before it (see the module)."""
    factor = math.sqrt(gate.gain * gate.slope)
    source = writer.add("Mul", gate.source, factor)
    moved = writer.add("Add", source, gate.offset * factor / gate.slope)
    writer.add("Mul", source, writer.add("Clip", moved, 0.0, factor / gate.slope))


def _write_scaled_product(writer: Writer, gate: Gate) -> None:
    """Write gain slope (x clip(x + offset / slope, 0, 1 / slope)); the factor stands behind it."""
    moved = writer.add("Add", gate.source, gate.offset / gate.slope)
    product = writer.add("Mul", gate.source, writer.add("Clip", moved, 0.0, 1 / gate.slope))
    factor = gate.gain * gate.slope
    if not math.isclose(factor, 1, rel_tol=1e-6):
        writer.add("Mul", product, factor)


def _spell_hard_sigmoid(graph: ir.Graph, node: ir.Node) -> bool:
    """Write clip(alpha x + beta, 0, 1)."""
    source = node.inputs[0] if node.op_type == "HardSigmoid" else None
    if source is None or not is_float32(source):
        return False
    given = {name: each.as_float() for name, each in node.attributes.items()}
    writer = Writer(graph, node.outputs[0])
    alpha, beta = given.get("alpha", 0.2), given.get("beta", 0.5)
    scaled = source if alpha == 1 else writer.add("Mul", source, alpha)
    moved = writer.add("Add", scaled, beta) if beta else scaled
    writer.add("Clip", moved, 0.0, 1.0)
    writer.replace([node])
    return True


def _spell_inverse(graph: ir.Graph, node: ir.Node) -> bool:
    """Write Add and Mul for a Sub and a Div by a number, which have no integer kernel."""
    found = operands(node) if node.op_type in ("Sub", "Div") else None
    if found is None or node.inputs[0] is not found[0] or not is_float32(found[0]):
        return False
    value, number = found
    if node.op_type == "Div" and not number:
        return False
    writer = Writer(graph, node.outputs[0])
    if node.op_type == "Sub":
        writer.add("Add", value, -number)
    else:
        writer.add("Mul", value, 1 / number)
    writer.replace([node])
    return True
