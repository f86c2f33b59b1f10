import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.integer_products import quantize_dynamically
from aigc_compress.passes.quantize.dynamic import quantize_dynamic
from aigc_compress.passes.quantize.static import quantize_static
from aigc_compress.passes.saturation import find_saturation

FLOAT = TensorProto.FLOAT


def model_of(nodes, inputs, outputs, **constants):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info(name, FLOAT, shape) for name, shape in inputs.items()],
        [info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def qdq(operator, weights, *, shape, x_zero=0, **attributes):
    """Return Q -> DQ -> operator with integer weights of scale 1; x has scale 1 as well."""
    node = helper.make_node
    dtype = np.int8 if x_zero is None else np.uint8
    nodes = [
        node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        node("DequantizeLinear", ["w", "one", "wzero"], ["wd"]),
        node(operator, ["xd", "wd"], ["y"], name="layer", **attributes),
    ]
    return model_of(
        nodes,
        {"x": shape},
        ["y"],
        one=np.ones((), np.float32),
        zero=np.asarray(x_zero or 0, dtype),
        w=weights,
        wzero=np.zeros((), weights.dtype),
    )


def pairs_by_loop(x, w):
    """Return all sums of neighbours, one by one: x (P, K) uint8, w (M, K) int8 -> (P, M, pairs)."""
    found = np.zeros((len(x), len(w), (x.shape[1] + 1) // 2))
    for p in range(len(x)):
        for m in range(len(w)):
            for k in range(x.shape[1]):
                found[p, m, k // 2] += float(x[p, k]) * float(w[m, k])
    return found


def shares(sums):
    """Return the shares of sums and of outputs that int16 does not hold."""
    is_bad = (sums > 32767) | (sums < -32768)
    return is_bad.mean(), is_bad.any(-1).mean()


def largest_sum(w):
    """Return the worst sum of each pair over every corner of the activations."""
    corners = np.array([[a, b] for a in (0, 255) for b in (0, 255)])
    pairs = np.pad(w, [(0, 0), (0, w.shape[1] % 2)]).reshape(len(w), -1, 2).astype(int)
    sums = np.einsum("ci,mpi->cmp", corners, pairs)
    return np.maximum(sums / 32767, sums / -32768).max(0)


def integers(seed, *shape, limit=127):
    return np.random.default_rng(seed).integers(-limit, limit + 1, shape).astype(np.int8)


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.float32)


@pytest.mark.parametrize(("columns", "depth"), [(5, 6), (3, 7)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_gemm_is_measured_as_a_loop_over_neighbours_says(columns, depth, is_transposed):
    w, x = integers(0, columns, depth), pixels(1, 8, depth)
    stored = w if is_transposed else np.ascontiguousarray(w.T)
    model = qdq("Gemm", stored, shape=[8, depth], transB=int(is_transposed))
    (found,) = find_saturation(model, [{"x": x}])
    assert (found.sums, found.outputs) == pytest.approx(shares(pairs_by_loop(x, w)))
    assert found.can_saturate == pytest.approx((largest_sum(w) > 1).mean())
    assert found.worst == pytest.approx(largest_sum(w).max())
    assert found.sums > 0


def test_a_matrix_product_counts_every_row_of_a_batch():
    w, x = integers(2, 4, 6), pixels(3, 2, 5, 6)
    model = qdq("MatMul", np.ascontiguousarray(w.T), shape=[2, 5, 6])
    (found,) = find_saturation(model, [{"x": x}])
    wanted = shares(pairs_by_loop(x.reshape(10, 6), w))
    assert (found.sums, found.outputs) == pytest.approx(wanted)


def test_what_saturates_is_what_int16_arithmetic_would_change():
    w, x = integers(4, 3, 8), pixels(5, 6, 8)
    exact = pairs_by_loop(x, w)
    clipped = np.clip(exact, -32768, 32767)  # VPMADDUBSW
    (found,) = find_saturation(qdq("Gemm", w, shape=[6, 8], transB=1), [{"x": x}])
    assert found.sums == pytest.approx((clipped != exact).mean())
    changed = (clipped.sum(-1) != exact.sum(-1)).mean()
    assert found.outputs >= changed > 0  # two sums may miss as much in opposite directions


CONVS = [
    ({"pads": [1, 1, 1, 1]}, (4, 3, 3, 3)),
    ({"strides": [2, 1], "pads": [0, 1, 2, 0]}, (4, 3, 3, 2)),
    ({"dilations": [2, 2]}, (2, 3, 2, 2)),
    ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (4, 3, 3, 3)),
    ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (4, 3, 2, 2)),
    ({"auto_pad": "VALID"}, (4, 3, 3, 3)),
]


def conv_rows(x, kernel, zero, *, strides=(1, 1), dilations=(1, 1), pads=None, auto_pad="NOTSET"):
    """Return every patch of a convolution, taps outside channels, written out as loops."""
    sizes = x.shape[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = list(pads or [0, 0, 0, 0])
    if auto_pad.startswith("SAME"):
        for axis in range(2):
            out = -(-sizes[axis] // strides[axis])
            total = max(0, (out - 1) * strides[axis] + reach[axis] - sizes[axis])
            small, large = total // 2, total - total // 2
            is_upper = auto_pad == "SAME_UPPER"
            pads[axis], pads[axis + 2] = (small, large) if is_upper else (large, small)
    padded = np.full(
        (*x.shape[:2], sizes[0] + pads[0] + pads[2], sizes[1] + pads[1] + pads[3]), zero
    )
    padded[:, :, pads[0] : pads[0] + sizes[0], pads[1] : pads[1] + sizes[1]] = x
    rows = []
    for image in padded:
        for top in range(0, image.shape[1] - reach[0] + 1, strides[0]):
            for left in range(0, image.shape[2] - reach[1] + 1, strides[1]):
                rows.append(
                    [
                        image[channel, top + i * dilations[0], left + j * dilations[1]]
                        for i in range(kernel[0])
                        for j in range(kernel[1])
                        for channel in range(image.shape[0])
                    ]
                )
    return np.array(rows)


@pytest.mark.parametrize(("attributes", "shape"), CONVS)
def test_a_convolution_pairs_channels_at_each_tap(attributes, shape):
    w, x = integers(6, *shape), pixels(7, 2, 3, 5, 5)
    (found,) = find_saturation(
        qdq("Conv", w, shape=list(x.shape), x_zero=9, **attributes), [{"x": x - 9}]
    )
    rows = conv_rows(x, shape[2:], 9, **attributes)
    flat = w.transpose(0, 2, 3, 1).reshape(len(w), -1)
    assert (found.sums, found.outputs) == pytest.approx(shares(pairs_by_loop(rows, flat)))
    assert found.worst == pytest.approx(largest_sum(flat).max())


def test_every_group_of_a_convolution_meets_its_own_channels():
    w, x = integers(8, 6, 2, 1, 1), pixels(9, 1, 4, 4, 4)
    x[:, :2] = 0.0  # the first group's channels: nothing there saturates
    (found,) = find_saturation(qdq("Conv", w, shape=[1, 4, 4, 4], group=2), [{"x": x}])
    rows = x[0].reshape(4, -1).T
    sums = [pairs_by_loop(rows[:, :2], w[:3, :, 0, 0]), pairs_by_loop(rows[:, 2:], w[3:, :, 0, 0])]
    assert (found.sums, found.outputs) == pytest.approx(shares(np.concatenate(sums, axis=1)))


def test_a_depthwise_convolution_has_no_pairs():
    w = np.full((4, 1, 3, 3), 127, np.int8)
    model = qdq("Conv", w, shape=[1, 4, 5, 5], group=4)
    (found,) = find_saturation(model, [{"x": np.full((1, 4, 5, 5), 255, np.float32)}])
    assert not found.is_possible
    assert "depthwise" in found.note


def test_seven_bits_are_never_flagged():
    w, x = integers(10, 16, 64, limit=64), np.full((4, 64), 255, np.float32)
    w[0] = 64
    (found,) = find_saturation(qdq("Gemm", w, shape=[4, 64], transB=1), [{"x": x}])
    assert not found.is_possible
    assert (found.can_saturate, found.sums, found.outputs) == (0, 0, 0)


def test_weights_of_one_sign_beside_each_other_are_the_edge():
    edge = np.array([[64, 64], [-64, -64], [127, -127]], np.int8)
    over = np.array([[65, 64], [-65, -64], [127, -127]], np.int8)
    found = [
        find_saturation(qdq("Gemm", each, shape=[1, 2], transB=1))[0].can_saturate
        for each in (edge, over)
    ]
    assert found == pytest.approx([0, 2 / 3])


@pytest.mark.parametrize("kind", ["int8 activations", "uint8 weights", "floats"])
def test_other_dtypes_have_no_finding(kind):
    w = np.full((4, 4), 127, np.int8)
    x_zero = None if kind == "int8 activations" else 0
    stored = w.astype(np.uint8) if kind == "uint8 weights" else w
    model = qdq("Gemm", stored, shape=[2, 4], x_zero=x_zero)
    if kind == "floats":
        gemm = helper.make_node("Gemm", ["x", "w"], ["y"])
        model = model_of([gemm], {"x": [2, 4]}, ["y"], w=w.astype(np.float32))
    assert find_saturation(model, [{"x": np.ones((2, 4), np.float32)}]) == ()


def test_without_feeds_only_the_static_statement_is_made():
    (found,) = find_saturation(qdq("Gemm", np.full((4, 4), 127, np.int8), shape=[2, 4]))
    assert found.is_possible
    assert (found.sums, found.outputs) == (None, None)


def test_the_worst_layer_comes_first():
    node = helper.make_node
    gain = np.array([[3.0, 0.01, 0.01, 0.01]] * 4, np.float32)  # one far above
    even = np.full((4, 4), 0.5, np.float32)
    nodes = [
        node("Gemm", ["x", "gain"], ["h"], name="mild", transB=1),
        node("Gemm", ["h", "even"], ["y"], name="wild", transB=1),
    ]
    model = model_of(nodes, {"x": [4, 4]}, ["y"], gain=gain, even=even)
    feeds = tuple({"x": np.random.default_rng(n).random((4, 4), np.float32)} for n in range(4))
    quantized, _ = quantize_static(model, QuantizeConfig(reduce_range=False), Context(feeds, feeds))
    found = find_saturation(quantized, feeds)
    assert [each.name for each in found] == ["wild", "mild"]
    assert found[0].can_saturate == 1  # 127 beside 127 everywhere
    assert found[1].can_saturate == 0  # 127 beside 0, and 0 beside 0
    reduced, _ = quantize_static(model, QuantizeConfig(reduce_range=True), Context(feeds, feeds))
    assert not any(each.is_possible for each in find_saturation(reduced, feeds))


def test_dynamic_quantization_is_seen_through():
    weights = np.random.default_rng(11).normal(size=(8, 6)).astype(np.float32)
    x = np.abs(np.random.default_rng(12).normal(size=(5, 8))).astype(np.float32)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"x": [5, 8]}, ["y"], w=weights
    )
    quantized, _ = quantize_dynamic(
        model, QuantizeConfig(mode="dynamic", reduce_range=False), Context(())
    )
    (found,) = find_saturation(quantized, [{"x": x}])
    scale = np.abs(weights).max(0) / 127
    w = np.rint(weights / scale).T
    assert found.operator == "MatMulInteger"
    wanted = shares(pairs_by_loop(np.rint(x / (x.max() / 255)), w))
    assert (found.sums, found.outputs) == pytest.approx(wanted, abs=0.02)


def lstm(hidden, width):
    rng = np.random.default_rng(13)
    w = rng.normal(size=(1, 4 * hidden, width)).astype(np.float32)
    r = rng.normal(size=(1, 4 * hidden, hidden)).astype(np.float32)
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=hidden, name="lstm")
    return model_of([node], {"x": [3, 2, width]}, ["y"], w=w, r=r)


def test_an_lstm_is_measured_on_its_inputs_and_says_that_states_are_not():
    model, _ = quantize_dynamic(
        lstm(4, 6), QuantizeConfig(mode="dynamic", reduce_range=False), Context(())
    )
    x = np.random.default_rng(14).random((3, 2, 6), np.float32)
    inputs, states = sorted(find_saturation(model, [{"x": x}]), key=lambda each: each.part)
    assert [inputs.part, states.part] == ["inputs", "states"]
    assert inputs.output == states.output == "y"
    assert inputs.sums is not None
    assert states.sums is None
    assert states.is_possible
    assert "states" in states.note
    reduced = QuantizeConfig(mode="dynamic", reduce_range=True)
    model, _ = quantize_dynamic(lstm(4, 6), reduced, Context(()))
    assert not any(each.is_possible for each in find_saturation(model, [{"x": x}]))


@pytest.mark.parametrize("seed", range(3))
def test_floats_are_quantized_as_onnxruntime_does(seed):
    x = np.random.default_rng(seed).normal(seed - 1, 2, (4, 5)).astype(np.float32)
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"])]
    model = model_of(nodes, {"x": [4, 5]}, [])
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.UINT8, [4, 5]))
    wanted = OrtSession(Artifact("onnx", model), threads=1).run({"x": x})["y"]
    np.testing.assert_array_equal(quantize_dynamically(x), wanted)


def test_a_sample_is_close_to_the_whole_and_the_same_every_time():
    w, x = integers(15, 96, 32), pixels(16, 300, 32)
    model = qdq("Gemm", w, shape=[300, 32], transB=1)
    found, again = (find_saturation(model, [{"x": x}], seed=1)[0] for _ in range(2))
    assert found == again
    sums = (x.reshape(300, 1, 16, 2) * w.astype(float).reshape(1, 96, 16, 2)).sum(-1)
    # 64 of 96 channels at 64 of 300 positions: a few per cent of the share itself
    assert found.sums == pytest.approx(shares(sums)[0], rel=0.1)
