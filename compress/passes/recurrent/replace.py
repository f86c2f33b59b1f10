"""Replace the GRU and LSTM nodes of a model, and tell what became of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto

from aigc_compress.passes.draft import MICROSOFT, Draft
from aigc_compress.passes.graphs import Shape, drop_unread, free_stem, graphs_of, known_shapes
from aigc_compress.passes.operators import RECURRENT

from .constants import Constants
from .gru import decompose_gru
from .layer import read_layer
from .lstm import integer_lstm
from .products import Products

__all__ = ["quantize_recurrent", "replace_recurrent"]

Writer = Callable[..., tuple[Draft, str]]
WRITERS: Mapping[str, Writer] = {"GRU": decompose_gru, "LSTM": integer_lstm}
IN_A_FUNCTION = "it stands in a function of the model; inline functions first"
ONNX = ("", "ai.onnx")


def quantize_recurrent(
    model: ModelProto, *, per_channel: bool = True, reduce_range: bool = False
) -> tuple[ModelProto, dict[str, dict[str, str]]]:
    """Return the model with integer GRU and LSTM layers, and what became of each.

    Weights become int8, symmetric; activations uint8, with ranges measured at every run. Inputs,
    outputs and dynamic axes stay. Weights may be initializers here or of a graph further out, or
    be made of some by nodes such as Slice and Concat.

    Args:
        model: float32; left as it is.
        per_channel: one weight scale per gate row instead of one per direction.
        reduce_range: weights within [-64, 64], for x86 without VNNI.

    Returns:
        The model, and by node: `operator`, and either `form` (`DynamicQuantizeLSTM`, or for GRU
        `step` or `scan`) or `float`, the reason why it was left alone.
    """
    products = Products(per_channel=per_channel, reduce_range=reduce_range)
    return replace_recurrent(model, products)


def replace_recurrent(
    model: ModelProto, products: Products
) -> tuple[ModelProto, dict[str, dict[str, str]]]:
    """Do the work of `quantize_recurrent` with any kind of products."""
    changed = ModelProto()
    changed.CopyFrom(model)
    opset = next((each.version for each in model.opset_import if each.domain in ONNX), 1)
    work = _Work(opset, products, known_shapes(model), free_stem(model))
    constants = Constants(changed.graph, opset=opset, ir_version=model.ir_version)
    _replace_in(changed.graph, constants, work)
    for function in model.functions:
        for node in function.node:
            if node.op_type in RECURRENT:
                work.tell(node, "float", IN_A_FUNCTION)
    if work.freed:
        drop_unread(changed, work.freed)
        _import_microsoft(changed)
    return changed, work.told


@dataclass
class _Work:
    """What the walk through the graphs needs, and what it finds.

    Attributes:
        opset: of the model.
        products: the kind of products to write.
        shapes: of values, by name.
        stem: what new names begin with.
        told: the report.
        freed: names that replaced nodes read.
    """

    opset: int
    products: Products
    shapes: dict[str, Shape]
    stem: str
    told: dict[str, dict[str, str]] = field(default_factory=dict)
    freed: set[str] = field(default_factory=set)

    def tell(self, node: NodeProto, key: str, value: str) -> None:
        """Note what became of a node, under a name of its own."""
        name = node.name or next(filter(None, node.output), node.op_type)
        full, count = name, 1
        while full in self.told:
            count += 1
            full = f"{name} ({count})"
        self.told[full] = {"operator": node.op_type, key: value}


def _replace_in(graph: GraphProto, constants: Constants, work: _Work) -> None:
    nodes: list[NodeProto] = []
    for node in graph.node:
        for inner in graphs_of(node):
            _replace_in(inner, constants.inside(inner), work)
        is_layer = node.op_type in RECURRENT and node.domain in ONNX
        draft = _replacement(node, constants, work) if is_layer else None
        nodes += draft.nodes if draft else [node]
        graph.initializer.extend(draft.constants if draft else [])
    del graph.node[:]
    graph.node.extend(nodes)


def _replacement(node: NodeProto, constants: Constants, work: _Work) -> Draft | None:
    """Return what takes a layer's place; None where there is a reason to leave it."""
    write = WRITERS.get(node.op_type)
    if write is None:
        work.tell(node, "float", f"{node.op_type} has no integer form")
        return None
    layer = read_layer(node, constants, work.shapes.get(node.input[0]))
    if isinstance(layer, str):
        work.tell(node, "float", layer)
        return None
    prefix = f"{work.stem}_{node.op_type}_{len(work.told)}"
    draft, form = write(node, layer, prefix=prefix, opset=work.opset, products=work.products)
    work.freed.update(filter(None, node.input[1:]))
    work.tell(node, "form", form)
    return draft


def _import_microsoft(model: ModelProto) -> None:
    if all(each.domain != MICROSOFT for each in model.opset_import):
        model.opset_import.add(domain=MICROSOFT, version=1)
