"""Adaptive rounding against plain products of integers and inputs in numpy and torch."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.errors import PassError
from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.quantize.static import quantize_static
from aigc_compress.passes.rounding import round_weights
from aigc_compress.passes.windows import input_rows


def tables(model):
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def one_layer(op, weight, x_shape, **attributes):
    nodes = [helper.make_node(op, ["x", "w"], ["y"], name="layer", **attributes)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def dependent(rng, *shape):
    """Return inputs that depend on each other: channels on a common part, places on neighbours."""
    axis = 1 if len(shape) > 2 else -1
    x = rng.standard_normal(shape)
    if len(shape) > 2:
        x = x.cumsum(axis=-1)
    common = x.sum(axis=axis, keepdims=True)
    return (x + common).astype(np.float32)


LAYERS = {
    "Conv": ("Conv", (6, 4, 3, 3), (2, 4, 7, 6), {"pads": [1, 1, 1, 1]}),
    "strided Conv": ("Conv", (6, 4, 3, 2), (2, 4, 9, 8), {"strides": [2, 3], "dilations": [2, 1]}),
    "grouped Conv": ("Conv", (6, 2, 3, 3), (2, 4, 7, 6), {"group": 2, "auto_pad": "SAME_UPPER"}),
    "depthwise Conv": ("Conv", (4, 1, 3, 3), (2, 4, 7, 6), {"group": 4}),
    "Conv of series": ("Conv", (6, 4, 5), (2, 4, 16), {"pads": [4, 0]}),
    "Gemm": ("Gemm", (12, 6), (40, 12), {}),
    "turned Gemm": ("Gemm", (6, 12), (40, 12), {"transB": 1, "alpha": 0.5}),
    "MatMul": ("MatMul", (12, 6), (40, 12), {}),
}


def quantized(net, feeds, **options):
    config = QuantizeConfig(mode="static", **options)
    return quantize_static(net, config, Context(feeds[:1], feeds))[0]


def make_case(kind, seed=0, **options):
    op, w_shape, x_shape, attributes = LAYERS[kind]
    rng = np.random.default_rng(seed)
    net = one_layer(op, rng.standard_normal(w_shape), x_shape, **attributes)
    feeds = tuple({"x": dependent(rng, *x_shape)} for _ in range(3))
    return net, quantized(net, feeds, **options), feeds


def weights_in(model):
    """Return the floats that the stored integers stand for, as DequantizeLinear makes them."""
    stored = tables(model)
    (border,) = (node for node in model.graph.node if node.input[0] == "w_quantized")
    integers, scale, zero = (stored[name].astype(np.float64) for name in border.input)
    axis = next((each.i for each in border.attribute if each.name == "axis"), 1)
    if scale.ndim:
        spread = [-1 if each == axis else 1 for each in range(integers.ndim)]
        scale, zero = scale.reshape(spread), zero.reshape(spread)
    return (integers - zero) * scale


def layer_output(kind, weights, x):
    """Compute a layer in float64 by torch."""
    op, _, _, attributes = LAYERS[kind]
    x, w = torch.from_numpy(x.astype(np.float64)), torch.from_numpy(weights)
    if op != "Conv":
        return (x @ (w.T if attributes.get("transB") else w)).numpy()
    rank = w.ndim - 2
    none = [1] * 2 * rank if "auto_pad" in attributes else [0] * 2 * rank
    pads = attributes.get("pads", none)
    # torch takes the last axis first, ONNX all beginnings first.
    flat = [pads[i + end * rank] for i in reversed(range(rank)) for end in (0, 1)]
    x = torch.nn.functional.pad(x, flat)
    convolve = torch.nn.functional.conv1d if rank == 1 else torch.nn.functional.conv2d
    given = {"stride": "strides", "dilation": "dilations"}
    options = {name: tuple(attributes.get(key, [1] * rank)) for name, key in given.items()}
    return convolve(x, w, groups=attributes.get("group", 1), **options).numpy()


def output_error(kind, net, model, feeds):
    exact = tables(net)["w"].astype(np.float64)
    errors = [layer_output(kind, weights_in(model) - exact, each["x"]) for each in feeds]
    return float(sum(np.square(each).sum() for each in errors))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_channel": False},
        {"weights": "uint8", "per_channel": False},
        {"reduce_range": True},
    ],
    ids=["per channel", "per tensor", "uint8", "7 bits"],
)
def test_outputs_come_closer_and_no_weight_moves_by_more_than_one(kind, options):
    net, before, feeds = make_case(kind, **options)
    after, told = round_weights(net, before, feeds)
    old, new = (tables(each)["w_quantized"].astype(int) for each in (before, after))
    assert np.abs(new - old).max() == 1
    assert np.abs(new).max() <= np.abs(old).max()
    assert new.min() >= (0 if options.get("weights") == "uint8" else -np.abs(old).max())
    errors = [output_error(kind, net, each, feeds) for each in (before, after)]
    assert errors[1] < 0.9 * errors[0]
    # All inputs were seen, so the told share is that of the plain sums.
    assert told["layer"].error == pytest.approx(errors[1] / errors[0], rel=1e-4)
    assert told["layer"].moved == (new != old).sum()
    assert told["layer"].weights == old.size


@pytest.mark.parametrize("kind", LAYERS)
def test_nothing_but_the_weights_changes(kind):
    net, before, feeds = make_case(kind)
    as_bytes = net.SerializeToString(), before.SerializeToString()
    after, _ = round_weights(net, before, feeds)
    assert (net.SerializeToString(), before.SerializeToString()) == as_bytes
    old, new = tables(before), tables(after)
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {"w_quantized"}
    assert new["w_quantized"].dtype == old["w_quantized"].dtype
    assert before.graph.node == after.graph.node


def test_most_of_what_the_best_of_all_roundings_gains_is_gained():
    rng = np.random.default_rng(3)
    net = one_layer("MatMul", rng.standard_normal((6, 20)), (50, 6))
    feeds = ({"x": dependent(rng, 50, 6)},)
    before = quantized(net, feeds)
    after, _ = round_weights(net, before, feeds)
    integers, found = (tables(each)["w_quantized"].astype(int) for each in (before, after))
    scale = tables(before)["w_scale"].astype(float)
    moves = np.stack(np.meshgrid(*[[-1, 0, 1]] * 6), axis=-1).reshape(-1, 6)

    def error(column, choice):
        rounding = choice * scale[column] - tables(net)["w"][:, column]
        return np.square(feeds[0]["x"] @ rounding).sum()

    columns = range(20)
    least = sum(min(error(i, integers[:, i] + move) for move in moves) for i in columns)
    nearest, chosen = (sum(error(i, each[:, i]) for i in columns) for each in (integers, found))
    # One weight at a time ends where no single step helps; two at once might.
    assert nearest - chosen > 0.5 * (nearest - least) > 0


def test_rounding_twice_gives_the_same_bytes():
    net, before, _ = make_case("Conv")
    rng = np.random.default_rng(1)
    feeds = tuple({"x": dependent(rng, 60, 4, 9, 9)} for _ in range(2))  # more rows than are taken
    first, second = (round_weights(net, before, feeds)[0].SerializeToString() for _ in range(2))
    assert first == second


def test_layers_that_share_a_weight_keep_the_nearest_integers():
    rng = np.random.default_rng(2)
    net = one_layer("MatMul", rng.standard_normal((5, 5)), (8, 5))
    net.graph.node[0].output[0] = "h"
    net.graph.node.append(helper.make_node("MatMul", ["h", "w"], ["y"], name="again"))
    feeds = ({"x": dependent(rng, 8, 5)},)
    before = quantized(onnx.shape_inference.infer_shapes(net), feeds)
    after, told = round_weights(net, before, feeds)
    assert told == {}
    assert after.SerializeToString() == before.SerializeToString()


def test_progress_counts_layers_and_missing_feeds_are_refused():
    net, before, feeds = make_case("Gemm")
    steps = []
    round_weights(net, before, feeds, on_step=lambda *step: steps.append(step))
    assert steps == [(1, 1)]
    with pytest.raises(PassError, match="needs calibration feeds"):
        round_weights(net, before, ())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_times_weights_are_the_outputs_of_a_convolution(data):
    draw = data.draw
    rank, groups = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    numbers = lambda low, high: [draw(st.integers(low, high)) for _ in range(rank)]  # noqa: E731
    kernel, strides, dilations = numbers(1, 3), numbers(1, 3), numbers(1, 2)
    pads, sizes = numbers(0, 2), numbers(5, 8)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 2 * groups, *sizes))
    weights = rng.standard_normal((3 * groups, 2, *kernel))
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        strides=strides,
        dilations=dilations,
        pads=pads * 2,
        group=groups,
    )
    rows = input_rows(node, x, kernel, most=10_000, seed=0)
    found = rows @ weights.reshape(groups, 3, -1).transpose(0, 2, 1)
    convolve = torch.nn.functional.conv1d if rank == 1 else torch.nn.functional.conv2d
    wanted = convolve(
        *map(torch.from_numpy, (x, weights)),
        stride=strides,
        padding=pads,
        dilation=dilations,
        groups=groups,
    ).numpy()
    channels_last = np.moveaxis(wanted, 1, -1).reshape(-1, groups, 3).transpose(1, 0, 2)
    np.testing.assert_allclose(found, channels_last, atol=1e-12)


def test_no_more_rows_than_asked_are_taken_and_each_once():
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x = np.arange(100.0).reshape(10, 5, 2)
    rows = input_rows(node, x, (), most=20, seed=3)
    assert rows.shape == (1, 20, 2)
    assert len({tuple(row) for row in rows[0]}) == 20
    assert {tuple(row) for row in rows[0]} <= {tuple(row) for row in x.reshape(-1, 2)}
