"""The layers of a graph that INT8 covers, each with what a runtime fuses into it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from onnx import ModelProto, NodeProto

from aigc_compress.passes.operators import RECURRENT, all_nodes
from aigc_compress.passes.quantize.static import integer_region
from aigc_compress.passes.recurrent import quantize_recurrent

__all__ = ["Site", "find_sites", "identity"]

# Fused into the layer before them on floats, integers or both.
ACTIVATIONS = ("Clip", "LeakyRelu", "Relu", "Sigmoid")
# They hand integers through as they are, so they bring no noise of their own.
PASSING = (
    *("Flatten", "Gather", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose"),
    "Unsqueeze",
)


@dataclass(frozen=True)
class Site:
    """One layer that can be integer.

    Attributes:
        name: of its first node.
        operator: types of its nodes, joined by +.
        nodes: what is made integer: names of static nodes, the first output of a dynamic one.
        outputs: what its nodes make, in order; where they are fused, the last stands for all.
        form: static ranges are read from calibration, dynamic ones at every call.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    outputs: tuple[str, ...]
    form: Literal["static", "dynamic"] = "static"

    @property
    def kind(self) -> str:
        """Return the type of its first node, which does the work."""
        return self.operator.split("+")[0]


def find_sites(graph: ModelProto) -> list[Site]:
    """Return the layers that the quantize pass would make integer, in graph order.

    Conv, Gemm and what follows them are static; LSTM and GRU are dynamic, and MatMul where there is
    neither Conv nor Gemm.

    Args:
        graph: of floats, the nodes of its main graph named.
    """
    is_static = any(node.op_type in ("Conv", "Gemm") for node in graph.graph.node)
    static = _static_sites(graph) if is_static else []
    recurrent = _recurrent_sites(graph)
    products = [] if is_static else _product_sites(graph)
    order = {
        name: index for index, node in enumerate(all_nodes(graph.graph)) for name in node.output
    }
    return sorted([*static, *recurrent, *products], key=lambda site: order[site.outputs[0]])


def identity(node: NodeProto) -> str:
    """Return what tells a node of any inner graph apart: its first output that has a name."""
    return next(filter(None, node.output), "")


def _static_sites(graph: ModelProto) -> list[Site]:
    region = set(integer_region(graph))
    nodes = [node for node in graph.graph.node if node.name in region]
    uses = Counter(name for node in all_nodes(graph.graph) for name in node.input)
    uses.update(each.name for each in graph.graph.output)
    readers = {name: node for node in nodes for name in node.input}
    taken: set[str] = set()
    sites = []
    for node in nodes:
        if node.name in taken or node.op_type in PASSING:
            continue
        parts = [node]
        reader = readers.get(node.output[0])
        if reader is not None and reader.op_type in ACTIVATIONS and uses[node.output[0]] == 1:
            parts.append(reader)
            taken.add(reader.name)
        operator = "+".join(part.op_type for part in parts)
        outputs = tuple(part.output[0] for part in parts)
        sites.append(Site(node.name, operator, tuple(part.name for part in parts), outputs))
    return sites


def _recurrent_sites(graph: ModelProto) -> list[Site]:
    found = [node for node in all_nodes(graph.graph) if node.op_type in RECURRENT]
    if not found:
        return []
    changed, _ = quantize_recurrent(graph)
    left = {identity(node) for node in all_nodes(changed.graph) if node.op_type in RECURRENT}
    return [_dynamic_site(node) for node in found if identity(node) not in left]


def _product_sites(graph: ModelProto) -> list[Site]:
    """Return products with constant matrices, each with the bias that is added to it."""
    constants = {each.name for each in graph.graph.initializer}
    biases = {
        name: node for node in graph.graph.node if node.op_type == "Add" for name in node.input
    }
    sites = []
    for node in graph.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in constants:
            continue
        site, bias = _dynamic_site(node), biases.get(node.output[0])
        if bias is not None and constants & {*bias.input}:
            outputs = (*site.outputs, bias.output[0])
            site = replace(site, operator="MatMul+Add", outputs=outputs)
        sites.append(site)
    return sites


def _dynamic_site(node: NodeProto) -> Site:
    key = identity(node)
    return Site(node.name or key, node.op_type, (key,), (key,), "dynamic")
