"""The layers of a captured graph that can be quantized, and why the others can't."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

__all__ = ["covered_nodes", "module_of", "quantizable_modules", "uncovered_reasons", "weight_axis"]

ROOT = "(root)"
COMPUTED = "its weights are computed, not constant"
WHOLE = "torch.export keeps the layer over all time steps as one operator"
NO_RULE = "there is no symmetric rule for it"
REASONS = {
    "lstm": WHOLE,
    "gru": WHOLE,
    "rnn_tanh": WHOLE,
    "rnn_relu": WHOLE,
    "conv3d": NO_RULE,
    "conv_transpose3d": NO_RULE,
    "matmul": COMPUTED,
    "bmm": COMPUTED,
    "scaled_dot_product_attention": COMPUTED,
}


def quantizable_modules(graph: GraphModule) -> list[str]:
    """Return the names of the modules that hold covered layers, in the order of their calls."""
    return list(dict.fromkeys(module_of(node) for node in covered_nodes(graph)))


def covered_nodes(graph: GraphModule) -> Iterator[Node]:
    """Yield convolutions, their transposes and linear layers whose weights are constants."""
    for node in graph.graph.nodes:
        if weight_axis(node) is not None and _has_constant_weight(node):
            yield node


def weight_axis(node: Node) -> int | None:
    """Return the axis of output channels in the weight of a layer; None: it is no such layer."""
    aten = torch.ops.aten
    axes: dict[Any, int] = {
        aten.conv1d.default: 0,
        aten.conv1d.padding: 0,
        aten.conv2d.default: 0,
        aten.conv2d.padding: 0,
        aten.linear.default: 0,
        aten.conv_transpose1d.default: 1,
        aten.conv_transpose2d.input: 1,
    }
    return axes.get(node.target)


def module_of(node: Node) -> str:
    """Return the dotted name of the innermost module that a node came from, `(root)` for none."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return (list(stack.values())[-1][0] if stack else "") or ROOT


def uncovered_reasons(graph: GraphModule) -> dict[str, str]:
    """Return why costly layers stay float whatever is tried, by name of their module."""
    reasons = {}
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        kind = getattr(getattr(node.target, "_schema", None), "name", "").removeprefix("aten::")
        if weight_axis(node) is not None and not _has_constant_weight(node):
            reasons[module_of(node)] = f"{kind}: {COMPUTED}"
        elif kind in REASONS:
            reasons[module_of(node)] = f"{kind}: {REASONS[kind]}"
    return reasons


def _has_constant_weight(node: Node) -> bool:
    weight = node.args[1]
    return isinstance(weight, Node) and weight.op == "get_attr"
