"""The nodes of a graph as ONNX Runtime runs it: integer, float or overhead, and why."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onnx import ModelProto, NodeProto, TensorProto, shape_inference

from aigc_compress.engines.ort import optimized
from aigc_compress.passes.graphs import all_graphs
from aigc_compress.passes.operators import (
    ALIASES,
    BORDERS,
    CONTROL,
    COSTLY,
    MOVING,
    all_nodes,
    is_integer,
    with_node_names,
)

from .blocked import Blocked, Quantization, Rules
from .shield import SHIELD_SUFFIX

__all__ = ["ExplainedNode", "Kind", "explain", "float_reasons"]

Kind = Literal["integer", "float", "overhead"]

PASSING = (*MOVING, "Clip", "Max", "MaxPool", "Min", "NhwcMaxPool", "Relu", "Resize")
FLOATS = (
    *(TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.FLOAT16),
    TensorProto.UNDEFINED,
)
CONSTANT_IF = "make its condition constant: folding then leaves the branch alone"
NAMED = 2  # operators that a border names


@dataclass(frozen=True)
class ExplainedNode:
    """One node of the optimized graph.

    Attributes:
        output: name of its first output.
        name: of the node of the graph that it comes from, the costliest where several were fused.
        operator: its type, as ONNX Runtime names it.
        kind: integer or float arithmetic, or overhead: borders, moves of data, shapes, control.
        reason: why it is not integer; empty where it is.
        remedy: what would help; empty where nothing does for sure.
    """

    output: str
    name: str
    operator: str
    kind: Kind
    reason: str = ""
    remedy: str = ""

    @property
    def plain_operator(self) -> str:
        """Return its type in ONNX, where ONNX Runtime has another name for the same."""
        return ALIASES.get(self.operator, self.operator)

    @property
    def is_costly(self) -> bool:
        """Whether it does arithmetic that integers are worth most for."""
        return self.plain_operator in COSTLY


def explain(model: ModelProto, scheme: Quantization) -> list[ExplainedNode]:
    """Return the nodes that ONNX Runtime makes of a graph, up to layouts of this very CPU.

    Args:
        model: of floats or quantized, the nodes of its main graph named.
        scheme: how it was quantized.

    Raises:
        PassError: the graph does not load.
    """
    rules, origins = Rules(model, scheme), _Origins(model)
    graph = optimized(model)
    kinds = _Kinds(graph)
    found = []
    for node in all_nodes(graph.graph):
        source, kind = origins.of(node), kinds.of(node)
        why = Blocked("")
        if kind == "float":
            why = rules.why(source, _operator(node, source))
        elif kind == "overhead":
            why = Blocked(kinds.task(node), CONSTANT_IF if node.op_type == "If" else "")
        name = source.name or source.output[0]
        found.append(
            ExplainedNode(node.output[0], name, node.op_type, kind, why.reason, why.remedy)
        )
    return found


def float_reasons(model: ModelProto, scheme: Quantization) -> dict[str, dict[str, int]]:
    """Return why costly operators are float, by type, each reason with its count.

    Arguments and errors as for `explain`.
    """
    reasons: dict[str, Counter[str]] = {}
    for node in explain(with_node_names(model), scheme):
        if node.kind == "float" and node.is_costly:
            reasons.setdefault(node.plain_operator, Counter())[node.reason] += 1
    return {operator: dict(counts) for operator, counts in reasons.items()}


def _operator(node: NodeProto, source: NodeProto) -> str:
    """Return the operator whose rules hold: that of the graph, unless several became a new one."""
    op = ALIASES.get(node.op_type, node.op_type)
    return source.op_type if op in COSTLY else op


class _Origins:
    """Finds the nodes of a graph that a node of the optimized graph was made of."""

    def __init__(self, model: ModelProto) -> None:
        self._makers = {
            name: node for node in all_nodes(model.graph) for name in node.output if name
        }

    def of(self, node: NodeProto) -> NodeProto:
        """Return the costliest node that went into one; itself where ONNX Runtime made it up."""
        found = self._all(node)
        costly = [each for each in found if each.op_type in COSTLY or is_integer(each.op_type)]
        same = [each for each in found if each.op_type in node.op_type]
        plain = [each for each in found if each.op_type not in BORDERS]
        return next(iter([*costly, *same, *plain, *found]), node)

    def _all(self, node: NodeProto) -> list[NodeProto]:
        """Return what lies between outputs and inputs, the nearest to the outputs first."""
        known, found = set(node.input), []
        queue = deque(node.output)
        while queue:
            name = queue.popleft()
            maker = None if name in known else self._makers.get(name)
            known.add(name)
            if maker is not None and maker not in found:
                found.append(maker)
                queue.extend(maker.input)
        return found


class _Kinds:
    """Tells integer, float and overhead apart in an optimized graph."""

    def __init__(self, model: ModelProto) -> None:
        nodes = list(all_nodes(model.graph))
        self._makers = {name: node for node in nodes for name in node.output if name}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._types = _types(model)
        self._narrow = _narrow(nodes)

    def of(self, node: NodeProto) -> Kind:
        """Return the kind of a node."""
        op = node.op_type
        if self._is_border(node):
            return "overhead"
        if is_integer(op) or (op not in MOVING and self._reads_narrow(node)):
            return "integer"
        is_bookkeeping = op in (*MOVING, *CONTROL) or not self._touches_floats(node)
        return "overhead" if is_bookkeeping else "float"

    def task(self, node: NodeProto) -> str:
        """Return what a node of overhead is there for."""
        if self._is_border(node):
            return self._border(node)
        if node.op_type in CONTROL:
            return "runs a graph inside it: the time is that around its nodes"
        is_data = self._reads_narrow(node) or self._touches_floats(node)
        return "moves data" if is_data else "works on shapes, indices or conditions"

    def _border(self, node: NodeProto) -> str:
        if node.op_type == "QuantizeLinear":
            maker = self._makers.get(node.input[0])
            return f"border: floats of {maker.op_type if maker else 'the input'} become integers"
        if node.op_type == "DequantizeLinear":
            readers = sorted({each.op_type for each in self._readers.get(node.output[0], [])})
            told = ", ".join(readers[:NAMED]) or "the output"
            return f"border: integers become floats for {told}"
        if _is_shield(node):
            return "border: ONNX Runtime would round the float layer behind it without this"
        if node.op_type == "DynamicQuantizeLinear":
            return "border: the range of an activation is measured at every call"
        return "border: integer sums become floats"

    def _is_border(self, node: NodeProto) -> bool:
        if node.op_type in (*BORDERS, "DynamicQuantizeLinear") or _is_shield(node):
            return True
        makers = [maker for maker in map(self._makers.get, node.input) if maker]
        if node.op_type == "Cast":
            return any(is_integer(maker.op_type) for maker in makers)
        dynamic = (maker.op_type == "DynamicQuantizeLinear" for maker in makers)
        scaling = (maker.op_type == "Cast" and self._is_border(maker) for maker in makers)
        return node.op_type == "Mul" and (any(dynamic) or any(scaling))

    def _reads_narrow(self, node: NodeProto) -> bool:
        return bool(node.input) and node.input[0] in self._narrow

    def _touches_floats(self, node: NodeProto) -> bool:
        names = filter(None, (*node.input, *node.output))
        return any(self._types.get(name, TensorProto.UNDEFINED) in FLOATS for name in names)


def _is_shield(node: NodeProto) -> bool:
    return node.op_type == "Clip" and node.output[0].endswith(SHIELD_SUFFIX)


def _narrow(nodes: list[NodeProto]) -> set[str]:
    """Return the names of the 8-bit tensors of activations."""
    narrow: set[str] = set()
    for node in nodes:
        op = node.op_type
        is_made = op in ("QuantizeLinear", "DynamicQuantizeLinear") or op.startswith("QLinear")
        is_gemm = op == "QGemm" and len(node.input) > 7 and bool(node.input[7])
        is_passed = op in PASSING and bool(node.input) and node.input[0] in narrow
        if is_made or is_gemm or (is_passed and op != "Cast"):
            narrow.update(node.output[:1] if op.startswith("Dynamic") else node.output)
    return narrow


def _types(model: ModelProto) -> Mapping[str, int]:
    """Return the element types of tensors as far as they can be inferred."""
    inferred = shape_inference.infer_shapes(model)
    types: dict[str, int] = {}
    for graph in all_graphs(inferred.graph):
        values = (*graph.input, *graph.output, *graph.value_info)
        types |= {each.name: each.type.tensor_type.elem_type for each in values}
        types |= {each.name: each.data_type for each in graph.initializer}
    return types
