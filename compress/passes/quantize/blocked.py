"""Why a node computes on floats: the rule that kept it there, and what would help."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from aigc_compress.passes.graphs import all_graphs, graphs_of
from aigc_compress.passes.operators import BORDERS, RECURRENT, STORED_SUFFIX, all_nodes, is_integer
from aigc_compress.passes.recurrent import quantize_recurrent

from .config import QuantizeConfig
from .static import ANCHORS, FOLLOWERS, integer_region, interpolates

__all__ = ["LEFT_BY_SPLIT", "Blocked", "Quantization", "Rules"]

LEFT_BY_SPLIT = "left float by the split (faster or closer to FP32 so)"
NOT_FUSED = "ONNX Runtime made no integer operator of it and the Q/DQ around it"
# ONNX Runtime has an integer kernel or passes integers on; `quantize` does not use it.
UNUSED = ("ArgMax", "Max", "Min", "Where")
PLAINER = "Relu, LeakyRelu or HardSwish in its place, then fine-tune"
BATCH = "BatchNormalization in its place folds into the layer before it; train again"
# What the passes before `quantize` fold away, or write in operators with an integer kernel.
SPELLED: Mapping[str, str] = {
    "BatchNormalization": "Mul",
    "HardSigmoid": "Clip",
    "HardSwish": "Mul",
    "Identity": "Reshape",
}
REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(("BiasGelu", "Celu", "Elu", "Erf", "FastGelu", "Gelu", "Mish"), PLAINER),
    **dict.fromkeys(("QuickGelu", "Selu", "Softplus"), PLAINER),
    **dict.fromkeys(("GroupNormalization", "InstanceNormalization", "LayerNormalization"), BATCH),
    "BatchNormalization": "behind a Conv or Gemm it folds into that",
    "ConvTranspose": "Resize (nearest) and Conv in its place, then train again",
    "PRelu": "LeakyRelu in its place, then fine-tune",
    "RNN": "LSTM or GRU in its place has an integer form; train again",
    "Resize": "mode nearest hands integers through",
    "Tanh": "Clip to [-1, 1] in its place, then fine-tune",
}


@dataclass(frozen=True)
class Blocked:
    """Why a node computes on floats.

    Attributes:
        reason: the rule that kept it there.
        remedy: what would help; empty where nothing does for sure.
    """

    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class Quantization:
    """How a graph was quantized.

    Attributes:
        config: of the quantize pass; None where the graph is of floats, or came quantized.
        parts: the parts of the pass that did something: static, dynamic, weights_only.
        choice: why something is float that could be integer.
    """

    config: QuantizeConfig | None = None
    parts: Collection[str] = ()
    choice: str = LEFT_BY_SPLIT


class Rules:
    """The rules on one graph, which is asked node by node."""

    def __init__(self, model: ModelProto, scheme: Quantization) -> None:
        """Prepare to ask.

        Args:
            model: as it is run, of floats or quantized, the nodes of its main graph named.
            scheme: how it was quantized.
        """
        nodes = list(all_nodes(model.graph))
        self._scheme = scheme
        self._makers = {name: node for node in nodes for name in node.output if name}
        self._around = dict(_insides(model.graph))
        self._types = {
            each.name: each.data_type
            for graph in all_graphs(model.graph)
            for each in graph.initializer
        }
        self._constants = _constants(nodes, self._types)
        self._is_quantized = any(n.op_type in BORDERS or is_integer(n.op_type) for n in nodes)
        self._region = set() if self._is_quantized else set(integer_region(self._spelled(model)))
        has_recurrent = any(node.op_type in RECURRENT for node in nodes)
        self._recurrent = quantize_recurrent(model)[1] if has_recurrent else {}

    def why(self, node: NodeProto, op: str | None = None) -> Blocked:
        """Return why a node computes on floats.

        Args:
            node: of the graph.
            op: what ONNX Runtime runs in its place, where it fused it with others.
        """
        blocked = self._why(node, op or node.op_type)
        if any(name.endswith(STORED_SUFFIX) for name in node.input):
            return replace(blocked, reason=f"{blocked.reason}; its weights are stored as INT8")
        return blocked

    def _why(self, node: NodeProto, op: str) -> Blocked:
        if op in RECURRENT:
            return self._recurrent_layer(node)
        around = self._around.get(_key(node))
        if around is None and node.name in self._region and op not in ANCHORS:
            return Blocked(self._scheme.choice)
        if op not in (*ANCHORS, *FOLLOWERS) or interpolates(node):
            return self._without_kernel(node, op)
        if around is not None and not self._is_covered_inside(op):
            return _inside(around)
        return Blocked(self._anchor(node) if op in ANCHORS else self._follower(node))

    def _spelled(self, model: ModelProto) -> ModelProto:
        """Return a copy with the operators that folding leaves, constants no longer read."""
        copy = ModelProto()
        copy.CopyFrom(model)
        for node in copy.graph.node:
            by_number = node.op_type in ("Div", "Sub") and node.input[1] in self._constants
            if by_number or node.op_type in SPELLED:
                node.op_type = SPELLED.get(node.op_type, "Mul")
            read = [name for name in node.input if name not in self._constants]
            del node.input[:]
            node.input.extend(read)
        return copy

    def _covers(self, part: str) -> bool:
        """Whether a part of the quantize pass did something, or would have on a graph of floats."""
        return part in self._scheme.parts or not self._is_quantized

    def _is_covered_inside(self, op: str) -> bool:
        """Whether it is something else than an inner graph that keeps an operator float there."""
        if op == "MatMul":
            return self._covers("dynamic")
        return op not in ANCHORS and not self._covers("static")

    def _recurrent_layer(self, node: NodeProto) -> Blocked:
        told = self._recurrent.get(node.name or _key(node), {})
        if "float" in told:
            return Blocked(told["float"], REMEDIES.get(node.op_type, ""))
        if not self._is_quantized or self._scheme.config is None:
            return Blocked(self._scheme.choice)
        if "dynamic" not in self._scheme.parts:
            why = f"the scheme is static, which leaves {node.op_type} float"
            return Blocked(why, "--mode auto covers it")
        return Blocked("the dynamic part of the scheme left it float")

    def _without_kernel(self, node: NodeProto, op: str) -> Blocked:
        if op in UNUSED:
            return Blocked(f"quantize has no integer form for {op}")
        kind = "interpolating Resize" if op == "Resize" else op
        return Blocked(f"ONNX Runtime has no integer kernel for {kind}", REMEDIES.get(op, ""))

    def _anchor(self, node: NodeProto) -> str:
        config, weights = self._scheme.config, node.input[1]
        kind = self._types.get(weights, TensorProto.FLOAT)
        if self._has_borders(node, [*node.input[:2]]):
            return NOT_FUSED
        if node.op_type != "MatMul" and weights not in self._constants:
            return "its weights are computed at run time, not constant"
        if kind != TensorProto.FLOAT and weights in self._types:
            name = TensorProto.DataType.Name(kind).lower()
            return f"its weights are {name}; integer forms exist for float32"
        if config is None:
            return self._scheme.choice
        if node.name in config.keep_float:
            return "keep_float names it"
        if "static" not in self._scheme.parts:
            return "a dynamic scheme covers LSTM, GRU and MatMul with constant weights alone"
        return self._scheme.choice if config.only is not None else "the quantization tool left it"

    def _follower(self, node: NodeProto) -> str:
        activations = [name for name in node.input if name and name not in self._constants]
        floats = [name for name in activations if not self._comes_from_integers(name)]
        if floats or not activations:
            maker = self._makers.get(floats[0]) if floats else None
            source = f"floats of {maker.op_type}" if maker else "floats"
            return f"fed by {source}: on integers it would need borders of its own"
        return NOT_FUSED if self._has_borders(node, activations) else self._scheme.choice

    def _comes_from_integers(self, name: str) -> bool:
        maker = self._makers.get(name)
        if maker is None:
            return False
        return maker.op_type == "DequantizeLinear" or maker.name in self._region

    def _has_borders(self, node: NodeProto, inputs: Collection[str]) -> bool:
        """Whether a node was to be integer: named by the split, or all it reads is quantized."""
        config = self._scheme.config
        if config is not None and config.only is not None:
            return node.name in config.only
        makers = (self._makers.get(name) for name in inputs)
        return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _key(node: NodeProto) -> str:
    """Return what tells a node of any inner graph apart: its first output that has a name."""
    return next(filter(None, node.output), "")


def _inside(around: NodeProto) -> Blocked:
    kind, name = around.op_type, around.name
    reason = f"inside the {kind} {name}: static quantization covers the main graph alone"
    remedy = f"make the condition of {name} constant: its branch then joins the main graph"
    return Blocked(reason, remedy if kind == "If" else "")


def _insides(graph: GraphProto, around: NodeProto | None = None) -> Iterator[tuple[str, NodeProto]]:
    """Yield the nodes of inner graphs by their first output, with the outermost one around them."""
    for node in graph.node:
        if around is not None:
            yield _key(node), around
        for inner in graphs_of(node):
            yield from _insides(inner, around or node)


def _constants(nodes: Collection[NodeProto], initializers: Collection[str]) -> set[str]:
    """Return the names of all tensors that no input of the graph reaches."""
    constants = set(initializers)
    for node in nodes:
        is_free = any(True for _ in graphs_of(node)) or node.op_type.startswith("Random")
        if not is_free and constants.issuperset(filter(None, node.input)):
            constants.update(filter(None, node.output))
    return constants
