"""Graphs for TensorRT: legal, as close as their precision allows, and built where it is here."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from aigc_compress.artifact import Artifact
from aigc_compress.errors import PassError
from aigc_compress.passes import PASSES, Context, ExportConfig, TensorRtConfig
from aigc_compress.passes.tensorrt import lint
from aigc_compress.pipeline import run_passes


class Residual(nn.Module):
    """Convolutions with a residual sum, a transposed one, and one whose channels lie in groups."""

    input_names, output_names = ("x",), ("y",)

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.second = nn.Conv2d(16, 16, 3, 1, 1)
        self.up = nn.ConvTranspose2d(16, 8, 4, 2, 1)
        self.grouped = nn.ConvTranspose2d(8, 8, 2, 2, groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        x = self.grouped(self.up(x).relu()).relu()
        return self.head(x.mean((2, 3)))


class Recurrent(nn.Module):
    input_names, output_names = ("x",), ("y",)

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(6, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.cell(x)[0])


NETS = {"residual": (Residual, (3, 12, 12)), "recurrent": (Recurrent, (7, 6))}


def exported(name):
    torch.manual_seed(0)
    make, shape = NETS[name]
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(n, *shape)).astype(np.float32)} for n in (2, 3, 4, 4)]
    config = ExportConfig(dynamic_axes={"x": {0: "batch"}})
    context = Context(tuple(feeds[:2]), tuple(feeds[2:]))
    graph = run_passes(Artifact("torch", make().eval()), [("export", config)], context)
    return run_passes(graph, [("fold", PASSES["fold"].config())], context), context


def made(name, **settings):
    graph, context = exported(name)
    return run_passes(graph, [("tensorrt", TensorRtConfig(**settings))], context)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 100), ("fp16", 50), ("int8", 20)])
def test_a_graph_is_legal_and_close(name, precision, least_db):
    artifact = made(name, precision=precision)
    assert lint(artifact.payload) == []
    onnx.checker.check_model(artifact.payload)  # sorted too, which runtimes do not demand
    numbers = artifact.history[-1].numbers
    assert numbers["sqnr_db"] > least_db
    counted = numbers["operators"]
    if precision != "int8":
        assert counted["int8"] == {}
    elif name == "residual":
        assert counted == {"int8": {"Conv": 3, "ConvTranspose": 2, "Gemm": 1}, "float": {}}
    else:
        assert counted == {"int8": {"MatMul": 1}, "float": {"LSTM": 1}}


def test_a_residual_sum_reads_the_integers_of_the_branch_that_has_them():
    model = made("residual", precision="int8").payload
    makers = {name: node for node in model.graph.node for name in node.output}
    (total,) = (
        node
        for node in model.graph.node
        if node.op_type == "Add" and all(name in makers for name in node.input)
    )
    kinds = {makers[name].op_type for name in total.input}
    assert kinds == {"Conv", "DequantizeLinear"}


def test_weights_have_a_scale_per_channel_and_biases_stay_float():
    model = made("residual", precision="int8").payload
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose")]
    for node in layers:
        dequantized = makers[node.input[1]]
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        channels = len(stored[node.input[2]])
        assert stored[dequantized.input[1]].size == (1 if groups > 1 else channels)
        assert stored[node.input[2]].dtype == np.float32


def test_half_keeps_the_face_and_halves_the_weights():
    artifact = made("residual", precision="fp16")
    graph = artifact.payload.graph
    assert {each.type.tensor_type.elem_type for each in (*graph.input, *graph.output)} == {1}
    kinds = {each.data_type for each in graph.initializer if len(each.dims) > 1}
    assert kinds == {TensorProto.FLOAT16}


def test_a_node_that_is_to_stay_float_does():
    graph, context = exported("residual")
    names = [node.name for node in graph.payload.graph.node if node.op_type == "ConvTranspose"]
    config = TensorRtConfig(precision="int8", keep_float=tuple(names))
    counted = run_passes(graph, [("tensorrt", config)], context).history[-1].numbers["operators"]
    assert counted["float"] == {"ConvTranspose": 2}


def test_int8_needs_calibration_feeds_and_layers():
    graph, context = exported("residual")
    config = TensorRtConfig(precision="int8")
    with pytest.raises(PassError, match="calibration feeds"):
        PASSES["tensorrt"].run(graph, config, Context(context.check_feeds))
    net = nn.ReLU().eval()
    net.input_names, net.output_names = ("x",), ("y",)
    bare = run_passes(
        Artifact("torch", net),
        [("export", ExportConfig(dynamic_axes={"x": {0: "batch"}}))],
        context,
    )
    with pytest.raises(PassError, match="Nothing to quantize"):
        PASSES["tensorrt"].run(bare, config, context)


def test_a_graph_that_tensorrt_would_refuse_is_told_before_it_is_asked():
    graph, context = exported("residual")
    quantized = PASSES["quantize"].run(graph, PASSES["quantize"].config(mode="static"), context)
    with pytest.raises(PassError, match="TensorRT would refuse this graph"):
        PASSES["tensorrt"].run(quantized, TensorRtConfig(), context)


@pytest.mark.tensorrt
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_builds_it(name, precision):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU")
    from aigc_compress.engines.trt import build_engine

    assert build_engine(made(name, precision=precision).payload.SerializeToString())
