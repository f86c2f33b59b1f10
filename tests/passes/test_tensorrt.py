"""Graphs for TensorRT: legal, as close as their precision allows, and built where it is here."""

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import pytest
import torch
from conftest import graph
from onnx import TensorProto, numpy_helper, parser
from torch import nn

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import sqnr_db
from aigc_compress.engines import get_engine
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError
from aigc_compress.passes import PASSES, Context, ExportConfig, TensorRtConfig
from aigc_compress.passes.tensorrt import PRECISIONS, lint
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
@pytest.mark.parametrize(
    ("precision", "least_db"), [("fp32", 100), ("fp16", 50), ("fp8", 20), ("int8", 20)]
)
def test_a_graph_is_legal_and_close(name, precision, least_db):
    artifact = made(name, precision=precision)
    assert lint(artifact.payload) == []
    onnx.checker.check_model(artifact.payload)  # sorted too, which runtimes do not demand
    numbers = artifact.history[-1].numbers
    assert numbers["sqnr_db"] > least_db
    counted = numbers["operators"]
    if precision in ("fp32", "fp16"):
        assert counted["int8"] == {}
    elif name == "residual":
        assert counted == {precision: {"Conv": 3, "ConvTranspose": 2, "Gemm": 1}, "float": {}}
    else:
        assert counted == {precision: {"MatMul": 1}, "float": {"LSTM": 1}}


def test_fp8_stands_where_int8_stood_with_scales_that_take_the_largest_weight_to_448():
    floats, integer, fp8 = (
        made("residual", precision=each).payload for each in ("fp32", "int8", "fp8")
    )
    assert [node.op_type for node in fp8.graph.node] == [n.op_type for n in integer.graph.node]
    tables = {each.name: numpy_helper.to_array(each) for each in fp8.graph.initializer}
    weights = {each.name: numpy_helper.to_array(each) for each in floats.graph.initializer}
    borders = [
        node for node in fp8.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert {tables[node.input[2]].dtype.name for node in borders} == {"float8_e4m3fn"}
    for node in (each for each in borders if each.input[0] in tables):
        values = tables[node.input[0]].astype(np.float32)
        weight = weights[node.input[0].removesuffix("_quantized")]
        scale = tables[node.input[1]]
        if scale.ndim:
            axis = next(a.i for a in node.attribute if a.name == "axis")
            scale = scale.reshape([-1 if place == axis else 1 for place in range(weight.ndim)])
        assert 416 <= np.abs(values).max() <= 448
        error = np.abs(values * scale - weight)  # half a step of a mantissa of 3 bits
        assert (error <= np.maximum(np.abs(weight) / 16, scale * 2.0**-10) * 1.001).all()


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_onnx_runtime_computes_the_graph_as_it_is_written(precision):
    artifact = made("residual", precision=precision)
    x = np.random.default_rng(1).normal(size=(2, 3, 12, 12)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(artifact.payload.SerializeToString(), options)
    (written,) = plain.run(None, {"x": x})
    (run,) = OrtSession(artifact, threads=1).run({"x": x}).values()
    assert sqnr_db(written, run) > 40


def test_fp8_needs_an_opset_that_knows_it():
    graph, context = exported("residual")
    old = onnx.version_converter.convert_version(graph.payload, 18)
    with pytest.raises(PassError, match="FP8 needs opset 19, and this graph has 18"):
        PASSES["tensorrt"].run(Artifact("onnx", old), TensorRtConfig(precision="fp8"), context)


def unfinished(text):
    """Return the model of a graph whose constants are still to come."""
    return parser.parse_model(f'<ir_version: 9, opset_import: ["" : 19]>\n{text}')


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5)])
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_the_bias_of_a_gemm_stays_float_whatever_its_shape_and_scale(shape, precision):
    rng = np.random.default_rng(0)
    model = unfinished("net (float[n,8] x) => (float[n,5] y) { y = Gemm<beta = 0.25>(x, w, c) }")
    bias = (3 * rng.normal(size=shape)).astype(np.float32)
    weight = rng.normal(size=(8, 5)).astype(np.float32)
    model.graph.initializer.extend(
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.asarray(bias), "c")]
    )
    feeds = tuple({"x": rng.normal(size=(4, 8)).astype(np.float32)} for _ in range(4))
    done = run_passes(
        Artifact("onnx", model),
        [("tensorrt", TensorRtConfig(precision=precision))],
        Context(feeds, feeds),
    )
    assert done.history[-1].numbers["sqnr_db"] > 25


def test_a_weight_that_a_float_layer_reads_too_is_not_rounded_there():
    rng = np.random.default_rng(0)
    model = unfinished(
        "net (float[n,4] x) => (float y, float z) { y = MatMul(x, w) t = Tanh(x) z = MatMul(t, w) }"
    )
    weight = rng.normal(size=(4, 4)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.node[2].name = "second"
    feeds = tuple({"x": rng.normal(size=(4, 4)).astype(np.float32)} for _ in range(4))
    config = TensorRtConfig(precision="int8", keep_float=("second",))
    done = run_passes(Artifact("onnx", model), [("tensorrt", config)], Context(feeds, feeds))
    stored = {each.name: numpy_helper.to_array(each) for each in done.payload.graph.initializer}
    (kept,) = (node for node in done.payload.graph.node if node.name == "second")
    np.testing.assert_array_equal(stored[kept.input[1]], weight)
    assert done.history[-1].numbers["operators"] == {"int8": {"MatMul": 1}, "float": {"MatMul": 1}}


def test_layers_that_read_infinities_alone_are_told():
    model = graph(
        "net (float[n,2] x) => (float y) <float[2,2] w = {1,2,3,4}> { l = Log(x) y = MatMul(l, w) }"
    )
    feeds = tuple({"x": np.zeros((2, 2), np.float32)} for _ in range(2))
    with pytest.raises(PassError, match="infinities or NaN"):
        PASSES["tensorrt"].run(
            Artifact("onnx", model), TensorRtConfig(precision="int8"), Context(feeds, feeds)
        )


def test_onnx_runtime_is_not_asked_for_fp8_from_a_file():
    with pytest.raises(PassError, match="drops a Relu before FP8"):
        get_engine("ort").load(made("residual", precision="fp8"), threads=1)


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
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_builds_it(name, precision):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU")
    from aigc_compress.engines.trt import build_engine

    assert build_engine(made(name, precision=precision).payload.SerializeToString())
