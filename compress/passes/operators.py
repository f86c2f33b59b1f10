"""What became of every operator: integer, float or overhead, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import ModelProto, NodeProto

from aigc_compress.engines.ort import optimized

__all__ = [
    "BORDERS",
    "CONTROL",
    "MOVING",
    "RECURRENT",
    "STORED_SUFFIX",
    "all_nodes",
    "count_operators",
    "is_integer",
    "operators_at_run_time",
    "with_node_names",
]

BORDERS = ("DequantizeLinear", "QuantizeLinear")
RECURRENT = ("LSTM", "GRU", "RNN")
STORED_SUFFIX = "_from_int8"  # of the floats made of weights that are stored as INT8
CONTROL = ("If", "Loop", "Scan")
MOVING = (  # data, or shapes: no arithmetic
    *("Cast", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten"),
    *("Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Shape", "Size"),
    *("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
PASSING = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
COSTLY = ("Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)
ALIASES = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul"}
INTEGER_PREFIXES = (
    "QLinear",
    "QGemm",
    "QAttention",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
)


def operators_at_run_time(quantized: ModelProto) -> dict[str, Any]:
    """Tell what ONNX Runtime runs on integers and what on floats, from its optimized graph.

    Returns:
        `int8` and `float`: number of operators by type; `weights_only`: those of the float ones
        whose weights are stored as INT8; `overhead`: Quantize- and DequantizeLinear left between
        them.
    """
    nodes: Counter[str] = Counter(
        ALIASES.get(str(n.op_type), str(n.op_type)) for n in all_nodes(optimized(quantized).graph)
    )
    overhead = {op: nodes.pop(op) for op in sorted(nodes) if op in BORDERS}
    integer = {op: count for op, count in sorted(nodes.items()) if is_integer(op)}
    floating = {op: count for op, count in sorted(nodes.items()) if op not in integer}
    stored = _nodes_with_stored_weights(quantized)
    return {
        "int8": integer,
        "float": floating,
        "weights_only": dict(Counter(node.op_type for node in stored)),
        "overhead": overhead,
    }


def _nodes_with_stored_weights(model: ModelProto) -> list[NodeProto]:
    """Return the nodes that compute on floats made of stored INT8 ones."""
    return [
        node
        for node in all_nodes(model.graph)
        if any(name.endswith(STORED_SUFFIX) for name in node.input)
    ]


def is_integer(op: str) -> bool:
    """Whether an operator type of ONNX or ONNX Runtime computes on integers."""
    return op.startswith(INTEGER_PREFIXES) or "Integer" in op


def all_nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph and of the graphs inside its If, Loop and Scan nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def with_node_names(model: ModelProto) -> ModelProto:
    """Return a copy in which every node of the main graph has a name of its own."""
    named = ModelProto()
    named.CopyFrom(model)
    taken = Counter(node.name for node in named.graph.node)
    for index, node in enumerate(named.graph.node):
        if not node.name or taken[node.name] > 1:
            stem = f"{node.name or node.op_type}__{index}"
            ends = (stem, *(f"{stem}_{number}" for number in range(len(named.graph.node))))
            node.name = next(each for each in ends if each not in taken)
            taken[node.name] = 1
    return named


def count_operators(model: ModelProto, *, kind: str = "int8") -> dict[str, dict[str, int]]:
    """Return how many costly operators read quantized tensors and how many do not, by type.

    Args:
        model: with Q/DQ.
        kind: what the quantized ones are called.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    counts: dict[str, Counter[str]] = {kind: Counter(), "float": Counter()}
    for node in model.graph.node:
        if node.op_type in COSTLY:
            is_quantized = all(_is_dequantized(name, makers) for name in node.input[:2])
            counts[kind if is_quantized else "float"][node.op_type] += 1
    return {name: dict(sorted(found.items())) for name, found in counts.items()}


def _is_dequantized(name: str, makers: dict[str, NodeProto]) -> bool:
    node = makers.get(name)
    while node is not None and node.op_type in PASSING:
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"
