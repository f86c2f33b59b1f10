import json

import numpy as np
import onnx
import pytest
from autotune_nets import (
    NETS,
    PASS,
    Cells,
    Net,
    context_of,
    drawn,
    linears,
    needs_packages,
    numbers_of,
    prepared,
    torch_outputs,
    tuned,
)
from conftest import SATURATES
from onnx import numpy_helper
from torch import nn

from aigc_compress.artifact import Artifact, graph_tensors, read_onnx, save_onnx
from aigc_compress.closeness import sqnr_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError
from aigc_compress.models.gan import GanConfig, Generator
from aigc_compress.models.rnn import CharacterModel, RnnConfig
from aigc_compress.passes import AutotuneConfig, Context
from aigc_compress.passes.autotune.agreement import require_agreement
from aigc_compress.passes.autotune.symmetric import require_symmetric
from aigc_compress.passes.operators import count_operators


@needs_packages
@pytest.mark.parametrize("name", NETS)
def test_quantized_graph_is_close_to_torch_at_batch_sizes_it_was_not_traced_with(name):
    make, shapes, _ = NETS[name]
    module, artifact = tuned(make, shapes)
    session = OrtSession(artifact, threads=1)
    for batch in (1, 7):
        feeds = drawn(shapes, batch, 9)
        found = session.run(feeds)
        for key, wanted in torch_outputs(module, feeds).items():
            assert found[key].shape == wanted.shape
            # int8 noise: neither broken nor float; the graph is TensorRT's, and saturates on AVX2
            assert (10 if SATURATES else 20) < sqnr_db(wanted, found[key]) < 80


@needs_packages
@pytest.mark.parametrize("name", NETS)
def test_every_covered_layer_stands_between_int8_tensors(name):
    make, shapes, wanted = NETS[name]
    _, artifact = tuned(make, shapes)
    operators = numbers_of(artifact)["operators"]
    assert operators == {"int8": wanted, "float": {}, "reasons": {}}


@needs_packages
@pytest.mark.parametrize("name", NETS)
def test_borders_are_int8_with_zero_point_zero_and_biases_stay_float(name):
    make, shapes, _ = NETS[name]
    _, artifact = tuned(make, shapes)
    graph = artifact.payload.graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    borders = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert borders
    for node in borders:
        assert constants[node.input[2]].dtype == np.int8
        assert not constants[node.input[2]].any()
        assert (constants[node.input[1]] > 0).all()
    assert not any(
        value.dtype == np.int32 and value.ndim == 1 and value.size > 4
        for value in constants.values()
    )


@needs_packages
def test_names_and_dynamic_axes_are_those_of_the_float_export():
    shapes = NETS["cells"][1]
    _, artifact = tuned(Cells, shapes)
    inputs, outputs = graph_tensors(artifact.payload)
    assert [(each.name, each.shape) for each in inputs] == [
        ("x", ("batch", 6)),
        ("h", ("batch", 8)),
        ("c", ("batch", 8)),
    ]
    assert [(each.name, each.shape) for each in outputs] == [
        ("y", ("batch", 3)),
        ("c_out", ("batch", 8)),
    ]


def fake_quantized(values, scale, low):
    return np.clip(np.rint(values / scale), low, 127) * scale


@needs_packages
def test_one_linear_layer_gives_the_numbers_of_plain_fake_quantization():
    shapes = {"x": (8,)}
    context = context_of(shapes)
    module, artifact = tuned(lambda: Net(nn.Linear(8, 5)), shapes, context, ranges=("minmax",))
    weight, bias = (p.detach().double().numpy() for p in module.layers[0].parameters())
    largest = max(np.abs(feeds["x"]).max() for feeds in context.calibration)
    # torchao divides by half of the number of steps: 255 for activations, 254 for weights.
    w = fake_quantized(weight, np.abs(weight).max(1, keepdims=True) / 127, -127)
    feeds = drawn(shapes, 6, 11)
    x = fake_quantized(feeds["x"].astype(np.float64), largest / 127.5, -128)
    found = OrtSession(artifact, threads=1).run(feeds)["y"]
    np.testing.assert_allclose(found, x @ w.T + bias, rtol=0, atol=1e-5)  # float32 sums of 8


@needs_packages
def test_one_transposed_convolution_has_one_scale_per_output_channel():
    shapes = {"x": (2, 5, 5)}
    layer = lambda: Net(nn.ConvTranspose2d(2, 3, 3, 2))  # noqa: E731
    module, artifact = tuned(layer, shapes)
    weight = module.layers[0].weight.detach().numpy()
    constants = {i.name: numpy_helper.to_array(i) for i in artifact.payload.graph.initializer}
    node = next(
        n
        for n in artifact.payload.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in constants
    )
    wanted = np.abs(weight).max((0, 2, 3)) / 127
    np.testing.assert_allclose(constants[node.input[1]], wanted, rtol=1e-6)
    stored = np.rint(weight / wanted[:, None, None])
    np.testing.assert_array_equal(constants[node.input[0]], stored)
    assert constants[node.input[0]].dtype == np.int8


@needs_packages
def test_provenance_survives_the_file(tmp_path):
    _, artifact = tuned(linears, {"x": (8,)})
    save_onnx(artifact, tmp_path / "linears.onnx")
    onnx.checker.check_model(str(tmp_path / "linears.onnx"), full_check=True)
    again = read_onnx(tmp_path / "linears.onnx")
    assert again.history[-1].name == "autotune"
    assert again.history[-1].numbers == json.loads(json.dumps(numbers_of(artifact)))


@needs_packages
def test_an_lstm_over_time_stays_float_at_any_length_and_says_why():
    config = RnnConfig(alphabet="\n In the beginning", layers=1, hidden=4, embedding=4)
    module = prepared(lambda: CharacterModel(config))

    def feeds(batch, length):
        rng = np.random.default_rng(length)
        states = {k: rng.standard_normal((1, batch, 4), np.float32) for k in ("h", "c")}
        return {"tokens": rng.integers(0, 10, (batch, length)), **states}

    axes = {"tokens": {0: "batch", 1: "time"}, "h": {1: "batch"}, "c": {1: "batch"}}
    context = Context((feeds(2, 5), feeds(3, 8)), tuple(feeds(4, n) for n in (6, 9)))
    artifact = PASS.run(Artifact("torch", module), AutotuneConfig(dynamic_axes=axes), context)
    operators = numbers_of(artifact)["operators"]
    assert operators["int8"] == {"MatMul": 1}
    assert operators["float"] == {"LSTM": 1}
    assert "all time steps" in operators["reasons"]["cell"]
    found = OrtSession(artifact, threads=1).run(feeds(1, 11))
    for key, wanted in torch_outputs(module, feeds(1, 11)).items():
        assert sqnr_db(wanted, found[key]) > 20


@needs_packages
def test_a_generator_keeps_a_quarter_of_its_bytes():
    module = prepared(lambda: Generator(GanConfig(latent=16, widths=(32, 32, 32))))
    _, artifact = tuned(lambda: module, {"z": (16,)})
    floats = sum(p.numel() * 4 for p in module.parameters())
    assert artifact.payload.ByteSize() < 0.35 * floats  # int8 weights, float biases and scales


@needs_packages
@pytest.mark.tensorrt
@pytest.mark.parametrize("name", NETS)
def test_tensorrt_builds_an_engine_from_the_graph(name):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU")
    from aigc_compress.engines.trt import build_engine

    make, shapes, _ = NETS[name]
    _, artifact = tuned(make, shapes)
    assert build_engine(artifact.payload.SerializeToString())


def with_border(zero_point, scale=0.5):
    x = onnx.helper.make_tensor_value_info("x", 1, [2])
    y = onnx.helper.make_tensor_value_info("y", 1, [2])
    constants = [
        numpy_helper.from_array(np.float32(scale), "s"),
        numpy_helper.from_array(zero_point, "z"),
    ]
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y], constants))


@pytest.mark.parametrize("zero", [np.uint8(0), np.int8(1), np.int32(0)])
def test_a_border_that_tensorrt_would_refuse_is_found(zero):
    require_symmetric(with_border(np.int8(0)))
    with pytest.raises(PassError, match="must be int8 0"):
        require_symmetric(with_border(np.asarray(zero)))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf])
def test_a_scale_that_is_not_positive_is_found(scale):
    with pytest.raises(PassError, match="positive scale"):
        require_symmetric(with_border(np.int8(0), scale))


def test_a_layer_with_one_float_input_counts_as_float():
    model = with_border(np.int8(0))
    model.graph.node.append(onnx.helper.make_node("MatMul", ["y", "x"], ["m"]))
    model.graph.node.append(onnx.helper.make_node("MatMul", ["y", "y"], ["n"]))
    assert count_operators(model) == {"int8": {"MatMul": 1}, "float": {"MatMul": 1}}


def test_a_graph_that_disagrees_with_the_quantized_module_is_refused():
    model = with_border(np.int8(0))
    model.opset_import[0].version, model.ir_version = 20, 9
    feeds = [{"x": np.float32([1.0, -2.5])}]
    assert require_agreement(model, feeds, [{"y": feeds[0]["x"]}], least_db=30) == 200
    with pytest.raises(PassError, match=r"agrees with the quantized module at 20\.0 dB"):
        require_agreement(model, feeds, [{"y": feeds[0]["x"] / 1.1}], least_db=30)
