"""Calibration in one pass, the ranges chosen from it, and ONNX Runtime's quantizer using them."""

import itertools
import json
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType
from scipy import stats

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import sqnr_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError, UsageError
from aigc_compress.passes import probe as probes
from aigc_compress.passes.histogram import Observed
from aigc_compress.passes.operators import operators_at_run_time
from aigc_compress.passes.ranges import METHODS, calibrate, choose_ranges, to_tensors_data

RNG = np.random.default_rng(0)
WIDE = np.append(RNG.standard_normal(100_000), np.full(10, 30.0)).astype(np.float32)
SAMPLES = {
    "normal": RNG.standard_normal(20_000),
    "after a Relu": np.maximum(RNG.standard_normal(20_000), 0),
    "after a LeakyRelu": (lambda x: np.where(x > 0, x, 0.1 * x))(RNG.standard_normal(20_000)),
    "heavy tails": RNG.standard_t(3, 20_000),
    "far from zero": RNG.uniform(5, 6, 20_000),
    "negative": -RNG.exponential(3, 20_000),
}


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


def seen(values, *, dtype=np.float32):
    return {"t": Observed().including(np.asarray(values, dtype))}


def the_range(values, **settings):
    return choose_ranges(seen(values), **settings)["t"]


def squared_error(values, low, high, *, bits=8, symmetric=False):
    """Return the mean squared error of rounding values as ONNX's QuantizeLinear does."""
    intervals = 2**bits - (2 if symmetric else 1)
    scale = (high - low) / intervals
    zero_point = round(-low / scale)
    integers = np.clip(np.rint(values / scale) + zero_point, 0, intervals)
    return float(np.mean(((integers - zero_point) * scale - values) ** 2))


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


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_expected_error_is_the_one_that_rounding_makes(name, symmetric, method):
    values = SAMPLES[name].astype(np.float32)
    chosen = the_range(values, symmetric=symmetric, method=method)
    assert chosen.low <= 0 <= chosen.high
    expected = squared_error(
        values.astype(np.float64), chosen.low, chosen.high, symmetric=symmetric
    )
    # The histogram spreads values evenly within its bins: a few percent at a step of 8 bins.
    assert chosen.mse[chosen.method] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(("bits", "symmetric"), [(8, False), (8, True), (4, False), (4, True)])
def test_the_least_error_is_that_of_brute_force(name, bits, symmetric):
    values = SAMPLES[name].astype(np.float32)
    chosen = the_range(values, bits=bits, symmetric=symmetric, method="mse")
    values = values.astype(np.float64)
    low, high = min(values.min(), 0), max(values.max(), 0)
    parts = np.linspace(1 / 30, 1, 30)
    if symmetric:
        ends = [(-part * max(high, -low), part * max(high, -low)) for part in parts]
    else:
        sides = [parts if side else [1] for side in (low, high)]
        ends = [(a * low, b * high) for a, b in itertools.product(*sides)]
    sample = values[::10]
    errors = [squared_error(sample, *pair, bits=bits, symmetric=symmetric) for pair in ends]
    best = squared_error(values, *ends[int(np.argmin(errors))], bits=bits, symmetric=symmetric)
    found = squared_error(values, chosen.low, chosen.high, bits=bits, symmetric=symmetric)
    # Both searches are grids, and the histogram's estimate of a sample differs by a percent or so.
    assert found <= 1.05 * best


@pytest.mark.parametrize("percent", ["99.9", "99.99", "99.999"])
def test_percentiles_cut_equal_shares_of_both_sides(percent):
    values = RNG.standard_t(4, 200_000).astype(np.float32)
    chosen = the_range(values, method=f"percentile-{percent}")
    beyond = (100 - float(percent)) / 2
    for end, at in ((chosen.low, beyond), (chosen.high, 100 - beyond)):
        expected = np.percentile(values.astype(np.float64), at, method="inverted_cdf")
        assert abs(end - expected) <= 2.0 ** seen(values)["t"].exponent


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_clips_outliers_that_minmax_keeps(symmetric):
    widest = the_range(WIDE, method="minmax", symmetric=symmetric)
    chosen = the_range(WIDE, method="entropy", symmetric=symmetric)
    assert widest.high == 30
    # 100,000 normal values reach beyond 4; what is clipped must be the outliers, not the bell.
    assert 3 < chosen.high < 10
    assert -10 < chosen.low < -3


def test_entropy_is_the_divergence_that_scipy_computes():
    values = SAMPLES["after a Relu"].astype(np.float32)
    chosen = the_range(values, method="entropy")
    found = seen(values)["t"]
    holds = found.bins > 0
    counts = found.bins[holds].astype(float)
    middles = ((found.edges[:-1] + found.edges[1:]) / 2)[holds]

    def divergence(high):
        inside = middles <= high
        clipped, kept = counts[inside].copy(), counts[inside]
        clipped[-1] += counts[~inside].sum()
        level = np.minimum(np.floor(middles[inside] / high * 256), 255)
        spread = [kept[level == each].mean() for each in level]
        return stats.entropy(clipped, spread)

    candidates = np.geomspace(found.high, found.high * 256 / 4096, 64)
    best = min(candidates, key=divergence)
    assert chosen.high == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("name", SAMPLES)
def test_auto_and_percentile_take_the_method_with_the_least_error(name):
    observed = seen(SAMPLES[name])
    single = [method for method in METHODS if method not in ("auto", "percentile")]
    alone = {method: choose_ranges(observed, method=method)["t"] for method in single}
    percentiles = {m for m in single if m.startswith("percentile-")}
    assert len(percentiles) == 3
    for group, members in (("auto", set(single)), ("percentile", percentiles)):
        chosen = choose_ranges(observed, method=group)["t"]
        assert chosen.mse == {m: alone[m].mse[m] for m in members}
        assert chosen.mse[chosen.method] == min(chosen.mse.values())
        best = alone[chosen.method]
        assert (chosen.low, chosen.high) == (best.low, best.high)


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=30),
    st.sampled_from(METHODS),
    st.booleans(),
    st.integers(2, 16),
)
@settings(deadline=None)
def test_zero_lies_inside_every_range_and_no_end_beyond_the_values(values, method, symmetric, bits):
    chosen = the_range(values, method=method, symmetric=symmetric, bits=bits)
    assert chosen.low <= 0 <= chosen.high
    largest = max(map(abs, values))
    assert max(-chosen.low, chosen.high) <= largest
    if symmetric:
        assert chosen.low == -chosen.high
    else:
        assert chosen.low >= min(*values, 0)
        assert chosen.high <= max(*values, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("constant", "ends"), [(0, (0, 0)), (2.5, (0, 2.5)), (-2, (-2, 0))])
def test_constants_and_zeros_keep_their_value(method, constant, ends):
    chosen = the_range(np.full(50, constant), method=method)
    assert (chosen.low, chosen.high) == ends
    # A constant lies on the last point of its grid; only its bin's width, 2^-30 of it, is unknown.
    assert chosen.mse[chosen.method] <= 1e-12


def test_values_without_a_range_are_refused_by_the_name_of_their_tensor():
    for values, message in (
        ([1, np.nan, np.inf], "tensor t held 2 infinities or NaN"),
        ([], "tensor t was empty"),
    ):
        with pytest.raises(PassError, match=message):
            the_range(values)


def test_wrong_settings_are_refused():
    with pytest.raises(UsageError, match="Did you mean 'minmax'"):
        the_range([1.0], method="min-max")
    with pytest.raises(UsageError, match="bits is 17"):
        the_range([1.0], bits=17)


def quantize(net, ranges, *, activation=QuantType.QUInt8, **options):
    copy = onnx.ModelProto()
    copy.CopyFrom(net)
    operators = ["Conv", "Gemm", "Add", "Relu"]
    data = to_tensors_data(ranges)
    quantizer = QDQQuantizer(
        copy, True, False, QuantType.QInt8, activation, data, [], [], operators, options
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
    integer = operators_at_run_time(quantized, net)["int8"]
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


def test_tensors_data_keep_the_dtype_of_the_tensor():
    ranges = choose_ranges(seen([0.5, 3], dtype=np.float16), method="minmax")
    data = to_tensors_data(ranges)["t"]
    assert (data.lowest.dtype, data.highest.dtype) == (np.float16, np.float16)
    assert data.range_value == (0, 3)
