"""The `openvino` pass: INT8 as OpenVINO's compiler for CPUs runs it fastest.

It joins a layer with the activation function behind it and with the rounding behind that, but not
across a Concat or a Transpose, which is what lowered ConvTransposes end in. So activation functions
go before what merely moves data, and Q/DQ stands before layers alone (see `borders`): an integer
border between a layer and its function costs a pass over the data, and accuracy.

ConvTranspose stays float: `lower` with `engine: openvino` writes it as Convs first.
"""

from __future__ import annotations

from collections import Counter

from onnx import GraphProto, ModelProto, NodeProto
from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step
from aigc_compress.machine import machine_scheme

from .agreement import sqnr_db
from .base import Context
from .borders import Borders, with_borders
from .graphs import free_stem, sorted_nodes
from .operators import all_nodes, count_operators, with_node_names
from .quantize.config import RangeMethod

__all__ = ["LAYERS", "OpenVinoConfig", "OpenVinoPass", "move_activations"]

LAYERS = ("Conv", "Gemm", "MatMul")
FUNCTIONS = (
    "Elu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "Relu",
    "Sigmoid",
    "Tanh",
)
# What moves data, by the number of inputs that are data; None: all of them.
MOVES = {
    "Concat": None,
    "DepthToSpace": 1,
    "Flatten": 1,
    "Reshape": 1,
    "Slice": 1,
    "Squeeze": 1,
    "Transpose": 1,
    "Unsqueeze": 1,
}


class OpenVinoConfig(BaseModel):
    """Settings of INT8 for OpenVINO."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ranges: RangeMethod = Field(
        default="minmax", description="where the range of an activation ends"
    )
    keep_float: tuple[str, ...] = Field(
        default=(), description="names of nodes that stay float, as `fold` names them"
    )
    reduce_range: bool = Field(
        default_factory=lambda: machine_scheme().reduces_range,
        description="weights so small that no two products of u8 x s8 leave int16, where x86"
        " without VNNI saturates; as this machine needs it, if not said",
    )


class OpenVinoPass:
    """Write INT8 for OpenVINO; the step's numbers tell what computes in what.

    `sqnr_db` compares with the graph before, both in ONNX Runtime on the CPU, on the check feeds.
    """

    name = "openvino"
    config = OpenVinoConfig

    def run(self, artifact: Artifact, config: OpenVinoConfig, context: Context) -> Artifact:
        """Return the graph; raises PassError where nothing in it has an INT8 form."""
        moved, count = move_activations(artifact.payload)
        borders = Borders(
            LAYERS,
            symmetric=False,
            minds_pairs=config.reduce_range,
            ranges=config.ranges,
            keep_float=config.keep_float,
        )
        model = with_borders(moved, borders, context)
        numbers = {
            "operators": count_operators(model),
            "functions_moved": count,
            "sqnr_db": sqnr_db(artifact, model, context),
        }
        step = Step(self.name, config.model_dump(mode="json"), context.seed, numbers)
        return artifact.then(model, step, stage="onnx")


def move_activations(model: ModelProto) -> tuple[ModelProto, int]:
    """Return the graph with activation functions right behind layers, and how many were moved.

    A function moves where nothing but what moves data stands between it and layers, and nothing
    else reads what is between.
    """
    changed = with_node_names(model)
    graph, stem, count = changed.graph, free_stem(changed), 0
    makers, readers = _makers_and_readers(graph)
    for node in [each for each in graph.node if each.op_type in FUNCTIONS and not each.domain]:
        if node.input[0] not in makers:
            continue
        path = _moves_between(makers[node.input[0]], makers, readers)
        if not path:
            continue
        count += 1
        source, target = node.input[0], node.output[0]
        inside = {name for each in path for name in each.output}
        fed = [name for each in path for name in _data(each) if name not in inside]
        for index, name in enumerate(dict.fromkeys(fed)):
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.name = f"{node.name}_{stem}{index}"
            copy.input[0], copy.output[0] = name, f"{target}_{stem}{index}"
            for each in path:
                for place, read in enumerate(_data(each)):
                    if read == name:
                        each.input[place] = copy.output[0]
        for each in path:
            each.output[0] = target if each.output[0] == source else each.output[0]
        graph.node.remove(node)
        _forget_shapes(changed, inside)
        makers, readers = _makers_and_readers(graph)
    return (sorted_nodes(changed), count) if count else (model, 0)


def _makers_and_readers(graph: GraphProto) -> tuple[dict[str, NodeProto], Counter[str]]:
    """Return who makes each value of a graph, and how many read it, the caller too."""
    makers = {name: each for each in graph.node for name in each.output}
    readers = Counter(name for each in all_nodes(graph) for name in each.input)
    readers.update(each.name for each in graph.output)
    return makers, readers


def _data(node: NodeProto) -> list[str]:
    return [*node.input][: MOVES[node.op_type]]


def _moves_between(
    node: NodeProto, makers: dict[str, NodeProto], readers: Counter[str]
) -> list[NodeProto]:
    """Return what moves data from layers to this node, itself last; nothing where others read it.

    A value between that is read twice, or made by anything else, ends the search without a result.
    """
    if node.op_type not in MOVES or readers[node.output[0]] != 1:
        return []
    path: list[NodeProto] = []
    for name in _data(node):
        maker = makers.get(name)
        if maker is None or readers[name] != 1:
            return []
        if maker.op_type in LAYERS:
            continue
        before = _moves_between(maker, makers, readers)
        if not before:
            return []
        path += before
    return [*path, node]


def _forget_shapes(model: ModelProto, names: set[str]) -> None:
    kept = [each for each in model.graph.value_info if each.name not in names]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
