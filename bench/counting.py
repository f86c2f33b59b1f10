"""Count multiply-accumulates (MACs) and bytes of an ONNX graph at given feeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, numpy_helper

from aigc_compress.engines.ort import create_session, optimized, session_options
from aigc_compress.errors import PassError
from aigc_compress.passes.operators import is_integer
from aigc_compress.task import Feeds

__all__ = ["NodeCost", "count_costs", "count_graph", "total_cost"]

Shape = tuple[int, ...]
GATES = {"LSTM": 4, "DynamicQuantizeLSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class NodeCost:
    """What one node asks for.

    Attributes:
        name: the node's name, or that of its first output.
        op: operator type.
        macs: multiply-accumulates.
        weight_bytes: bytes of the constants that it reads.
        activation_bytes: bytes of the activations that it reads and writes.
        is_integer: whether the arithmetic is on integers.
    """

    name: str
    op: str
    macs: int
    weight_bytes: int
    activation_bytes: int
    is_integer: bool


def count_costs(model: ModelProto, feeds: Feeds) -> list[NodeCost]:
    """Return the cost of every node that ONNX Runtime runs; graphs inside If and Loop are left out.

    The graph is optimized first, as a session would (Q/DQ become integer operators then).

    Raises:
        PassError: the graph does not run on these feeds.
    """
    return count_graph(optimized(model), feeds)


def count_graph(model: ModelProto, feeds: Feeds) -> list[NodeCost]:
    """Return the cost of every node of a graph as it stands.

    Shapes are not inferred but seen: it is run once with every tensor as an output.

    Raises:
        PassError: the graph does not run on these feeds.
    """
    seen = _observe(model, feeds)
    constants = {each.name: each for each in model.graph.initializer}
    sizes = {name: math.prod(shape) * width for name, (shape, width) in seen.items()}
    costs = []
    for node in model.graph.node:
        reads = [name for name in node.input if name]
        weights = sum(_constant_bytes(constants[name]) for name in reads if name in constants)
        moved = [*(name for name in reads if name not in constants), *node.output]
        shapes = {name: shape for name, (shape, _) in seen.items()}
        shapes |= {name: tuple(each.dims) for name, each in constants.items()}
        costs.append(
            NodeCost(
                node.name or node.output[0],
                node.op_type,
                _macs(node, shapes),
                weights,
                sum(sizes.get(name, 0) for name in moved),
                is_integer(node.op_type),
            )
        )
    return costs


def total_cost(costs: Sequence[NodeCost]) -> dict[str, int]:
    """Return the sums of MACs, float and integer apart, and of bytes."""
    return {
        "macs": sum(each.macs for each in costs),
        "integer_macs": sum(each.macs for each in costs if each.is_integer),
        "weight_bytes": sum(each.weight_bytes for each in costs),
        "activation_bytes": sum(each.activation_bytes for each in costs),
    }


def _observe(model: ModelProto, feeds: Feeds) -> dict[str, tuple[Shape, int]]:
    """Run the graph once and return the shape and item size of every tensor."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {value.name for value in exposed.graph.output}
    for node in exposed.graph.node:
        for name in node.output:
            if name and name not in known:
                exposed.graph.output.append(onnx.ValueInfoProto(name=name))
                known.add(name)
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = create_session(exposed.SerializeToString(), options)
    try:
        values = session.run(None, dict(feeds))
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise PassError(f"The graph does not run on these feeds: {error}") from error
    names = [each.name for each in session.get_outputs()]
    tensors = {**dict(zip(names, values, strict=True)), **feeds}
    return {
        name: (tuple(value.shape), value.dtype.itemsize)
        for name, value in tensors.items()
        if hasattr(value, "dtype")
    }


def _constant_bytes(tensor: Any) -> int:
    return numpy_helper.to_array(tensor).nbytes


def _macs(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Return the MACs of a node; 0 for operators that only move or combine elements."""
    op = node.op_type
    if op in GATES:
        return _recurrent_macs(node, shapes)
    data, weight = _operands(node)
    if weight is None or data not in shapes or weight not in shapes:
        return 0
    x, w = shapes[data], shapes[weight]
    out = shapes.get(node.output[0], ())
    if "ConvTranspose" in op:
        return math.prod(x) * math.prod(w[1:])
    if "Conv" in op:
        return math.prod(out) * math.prod(w[1:])
    inner = x[0] if _attribute(node, "transA") else x[-1]
    return math.prod(out) * inner


def _operands(node: NodeProto) -> tuple[str, str | None]:
    """Return the names of the data and the weight of an operator that multiplies, else None."""
    op = node.op_type
    if op in ("QLinearConv", "QLinearMatMul", "QGemm"):
        return node.input[0], node.input[3]
    multiplies = ("Conv", "ConvTranspose", "MatMul", "Gemm", "FusedConv", "FusedMatMul")
    integer = ("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
    if op in (*multiplies, "FusedGemm", *integer):
        return node.input[0], node.input[1]
    return "", None


def _recurrent_macs(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Return T N D gates H (I + H) from X (T, N, I) and the hidden size H in D directions."""
    steps, batch, inputs = shapes[node.input[0]]
    hidden = int(_attribute(node, "hidden_size"))
    directions = 2 if _attribute(node, "direction") == b"bidirectional" else 1
    return steps * batch * directions * GATES[node.op_type] * hidden * (inputs + hidden)


def _attribute(node: NodeProto, name: str) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return 0
