"""Calibration in one pass, and the quantizer of ONNX Runtime using the ranges chosen from it."""

import itertools
import json
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest
from conftest import SATURATES
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import sqnr_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError, UsageError
from aigc_compress.passes import probe as probes
from aigc_compress.passes.operators import operators_at_run_time
from aigc_compress.passes.ranges import METHODS, calibrate, choose_ranges, to_tensors_data

RNG = np.random.default_rng(0)


def weight(name, *shape):
    return numpy_helper.from_array((RNG.standard_normal(shape) * 0.2).astype(np.float32), name)


def model(nodes, initializers, x_shape):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def conv_net():
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=pads, name="conv1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=pads, name="conv2"),
        helper.make_node("Add", ["c2", "r1"], ["y"], name="add"),
    ]
    weights = [weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 8, 8, 3, 3), weight("b2", 8)]
    return model(nodes, weights, ["N", 3, 8, 8])


def gemm_net():
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["g1"], transB=1, name="gemm1"),
        helper.make_node("Relu", ["g1"], ["r1"], name="relu1"),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["y"], name="gemm2"),
    ]
    weights = [weight("w1", 16, 12), weight("b1", 16), weight("w2", 16, 5), weight("b2", 5)]
    return model(nodes, weights, ["N", 12])


def feeds_of(shape, count=16):
    return [{"x": RNG.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def outputs(net, feeds):
    session = OrtSession(Artifact("onnx", net), threads=1)
    return [session.run(each) for each in feeds]


def conv_activations(net, feeds):
    """Return all tensors of conv_net by plain numpy: a convolution as a sum of nine products."""
    tables = {each.name: numpy_helper.to_array(each) for each in net.graph.initializer}

    def conv(x, w, b):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        parts = [
            np.einsum("oi,nihw->nohw", w[:, :, i, j], padded[:, :, i : i + 8, j : j + 8])
            for i, j in itertools.product(range(3), repeat=2)
        ]
        return sum(parts) + b[:, None, None]

    x = np.concatenate([each["x"] for each in feeds]).astype(np.float64)
    c1 = conv(x, tables["w1"], tables["b1"])
    r1 = np.maximum(c1, 0)
    c2 = conv(r1, tables["w2"], tables["b2"])
    return {"x": x, "c1": c1, "r1": r1, "c2": c2, "y": c2 + r1}


def test_every_activation_is_watched_with_its_extremes():
    net, feeds = conv_net(), feeds_of((2, 3, 8, 8))
    found = calibrate(net, iter(feeds))
    expected = conv_activations(net, feeds)
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].count == values.size
        np.testing.assert_allclose(found[name].low, values.min(), rtol=1e-5)
        np.testing.assert_allclose(found[name].high, values.max(), rtol=1e-5)
        median = np.quantile(values, 0.5, method="inverted_cdf")
        # One bin, and the rounding of float32 that can move a value into the next.
        assert abs(found[name].quantile(0.5) - median) <= 2.0 ** found[name].exponent * 1.01


def test_only_the_wanted_tensors_are_watched():
    found = calibrate(conv_net(), feeds_of((1, 3, 8, 8)), tensors=["r1", "x", "r1"])
    assert set(found) == {"x", "r1"}


def test_groups_of_tensors_see_the_same(monkeypatch):
    net, feeds = conv_net(), feeds_of((2, 3, 8, 8), count=3)
    together = calibrate(net, feeds)
    monkeypatch.setattr(probes, "MOST_BYTES", 2 * 8 * 8 * 8 * 4)
    probe = probes.Probe(net, ["c1", "r1", "c2", "y"])
    assert [name for name, _ in probe.run(feeds[0])] == ["c1", "r1", "c2", "y"]
    assert len(probe._sessions) == 4
    apart = calibrate(net, feeds)
    assert {n: o.bins.tolist() for n, o in apart.items()} == {
        n: o.bins.tolist() for n, o in together.items()
    }


def test_whole_numbers_are_left_out_and_unknown_names_refused():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["zeros"]),
        helper.make_node("Add", ["x", "zeros"], ["y"]),
    ]
    net, feeds = model(nodes, [], ["N", 3]), feeds_of((2, 3))
    assert set(calibrate(net, feeds)) == {"x", "zeros", "y"}
    with pytest.raises(UsageError, match="no tensor of floats 's'"):
        calibrate(net, feeds, tensors=["s"])
    with pytest.raises(UsageError, match="no tensor of floats 'nowhere'"):
        calibrate(net, feeds, tensors=["nowhere"])


def test_progress_counts_up_with_and_without_a_known_length():
    steps = []
    calibrate(gemm_net(), feeds_of((2, 12), 3), on_step=lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    steps.clear()
    unsized = (each for each in feeds_of((2, 12), 2))
    calibrate(gemm_net(), unsized, on_step=lambda *step: steps.append(step))
    assert steps == [(1, 1), (2, 2)]


def test_no_feeds_are_refused():
    with pytest.raises(PassError, match="needs calibration feeds"):
        calibrate(gemm_net(), [])


MEMORY_SCRIPT = textwrap.dedent(
    """
    import json, resource, sys
    import numpy as np
    import onnx
    from aigc_compress.passes.ranges import calibrate

    net = onnx.load(sys.argv[1])
    rng = np.random.default_rng(0)

    def peak_after(count):
        feeds = ({"x": rng.standard_normal((1, 3, 32, 32), np.float32)} for _ in range(count))
        samples = calibrate(net, feeds)["y"].count
        return samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    print(json.dumps([peak_after(100), peak_after(10_000)]))
    """
)


def test_memory_with_ten_thousand_samples_is_that_with_a_hundred(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Neg", ["r"], ["y"])]
    path = tmp_path / "net.onnx"
    onnx.save(model(nodes, [], [1, 3, 32, 32]), path)
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = json.loads(done.stdout)
    # Kept, the activations of 10,000 samples would take 360 MB.
    assert (few[0], many[0]) == (100 * 3072, 10_000 * 3072)
    assert many[1] <= 1.5 * few[1]


def quantize(net, ranges, *, activation=QuantType.QUInt8, **options):
    copy = onnx.ModelProto()
    copy.CopyFrom(net)
    operators = ["Conv", "Gemm", "Add", "Relu"]
    data = to_tensors_data(ranges)
    quantizer = QDQQuantizer(
        copy, True, SATURATES, QuantType.QInt8, activation, data, [], [], operators, options
    )
    quantizer.quantize_model()
    return quantizer.model.model


def grid_of(quantized, tensor):
    """Return the scale and zero point of a tensor's one QuantizeLinear."""
    tables = {each.name: numpy_helper.to_array(each) for each in quantized.graph.initializer}
    grids = [n.input[1:] for n in quantized.graph.node if n.op_type == "QuantizeLinear"]
    ((scale, zero_point),) = (grid for grid in grids if grid[0] == f"{tensor}_scale")
    return tables[scale], tables[zero_point]


NETS = {
    "conv": (conv_net, (4, 3, 8, 8), ["x", "r1", "c2", "y"]),
    "gemm": (gemm_net, (256, 12), ["x", "r1", "y"]),
}


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("method", METHODS)
def test_the_quantizer_of_onnxruntime_uses_the_chosen_ranges(kind, method):
    build, shape, tensors = NETS[kind]
    net, feeds = build(), feeds_of(shape)
    ranges = choose_ranges(calibrate(net, feeds), method=method)
    quantized = quantize(net, ranges)
    for name in tensors:
        scale, zero_point = grid_of(quantized, name)
        low, high = ranges[name].low, ranges[name].high
        assert scale == pytest.approx((high - low) / 255, rel=1e-6)
        assert abs(int(zero_point) + low / scale) <= 0.5 + 1e-4  # float32 decides at the half
        assert zero_point.dtype == np.uint8
    integer = operators_at_run_time(quantized)["int8"]
    assert integer == ({"QLinearConv": 2, "QLinearAdd": 1} if kind == "conv" else {"QGemm": 2})
    pairs = zip(outputs(net, feeds), outputs(quantized, feeds), strict=True)
    # Rounding alone leaves about 35 dB per layer, clipping a thousandth of the values about 22.
    assert min(sqnr_db(wanted["y"], found["y"]) for wanted, found in pairs) > 18


def test_symmetric_ranges_make_symmetric_grids():
    net, feeds = conv_net(), feeds_of((4, 3, 8, 8))
    ranges = choose_ranges(calibrate(net, feeds), symmetric=True, method="mse")
    quantized = quantize(net, ranges, activation=QuantType.QInt8, ActivationSymmetric=True)
    for name in ("x", "r1", "y"):
        scale, zero_point = grid_of(quantized, name)
        assert scale == pytest.approx(ranges[name].high / 127, rel=1e-6)
        assert (zero_point.dtype, int(zero_point)) == (np.int8, 0)
