"""Cross-layer equalization: the same outputs, with weights that are equally large."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.passes.equalize import equalize

PADS = [1, 1, 1, 1]
CHANNELS = 6


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], name=f"make_{output}", **attributes)


def uneven(rng, shape, axis):
    """Return weights whose channels along an axis are of very different sizes, 0.01 to 100."""
    sizes = 10.0 ** rng.uniform(-2, 2, shape[axis])
    spread = [1] * len(shape)
    spread[axis] = shape[axis]
    return rng.standard_normal(shape) * sizes.reshape(spread)


def model(nodes, tables, x_shape=("N", 3, 8, 8), *, outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tables.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = onnx.shape_inference.infer_shapes(made)
    onnx.checker.check_model(made)
    return made


def tables_of(rng, *, depthwise=False):
    tables = {
        "w1": uneven(rng, (CHANNELS, 3, 3, 3), 0),
        "b1": rng.standard_normal(CHANNELS),
        "w2": uneven(rng, (4, CHANNELS, 3, 3), 1),
        "b2": rng.standard_normal(4),
    }
    if depthwise:
        tables["wd"] = uneven(rng, (CHANNELS, 1, 3, 3), 0)
        tables["bd"] = rng.standard_normal(CHANNELS)
    return tables


def conv_pair(between, *, outputs=("y",), extra=(), tables=None):
    """Return Conv, what stands between (from a to b), and Conv."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], "a", pads=PADS),
        *between,
        node("Conv", ["b", "w2", "b2"], "y", pads=PADS),
        *extra,
    ]
    return model(nodes, tables or tables_of(np.random.default_rng(0)), outputs=outputs)


def tables_in(net):
    return {each.name: numpy_helper.to_array(each).astype(float) for each in net.graph.initializer}


def assert_same_outputs(before, after, x_shape=(2, 3, 8, 8)):
    x = np.random.default_rng(9).standard_normal(x_shape).astype(np.float32)
    wanted, found = (
        OrtSession(Artifact("onnx", each), threads=1).run({"x": x}) for each in (before, after)
    )
    assert set(wanted) == set(found)
    for name, values in wanted.items():
        # Relative to the largest value: float32 sums of terms of very different sizes.
        assert np.abs(found[name] - values).max() <= 1e-5 * np.abs(values).max()


BETWEEN = {
    "Relu": [node("Relu", ["a"], "b")],
    "LeakyRelu": [node("LeakyRelu", ["a"], "b", alpha=0.2)],
    "MaxPool": [
        node("Relu", ["a"], "r"),
        node("MaxPool", ["r"], "b", kernel_shape=[3, 3], pads=PADS),
    ],
    "AveragePool": [node("AveragePool", ["a"], "b", kernel_shape=[2, 2], strides=[2, 2])],
    "GlobalMaxPool": [node("GlobalMaxPool", ["a"], "b")],
}


@pytest.mark.parametrize("kind", BETWEEN)
def test_channels_become_equally_large_and_outputs_stay(kind):
    before = conv_pair(BETWEEN[kind])
    after, told = equalize(before, most=1e6)
    assert_same_outputs(before, after)
    old, new = tables_in(before), tables_in(after)
    sizes = [
        [np.abs(each["w1"]).max(axis=(1, 2, 3)), np.abs(each["w2"]).max(axis=(0, 2, 3))]
        for each in (old, new)
    ]
    np.testing.assert_allclose(sizes[1][0], sizes[1][1], rtol=1e-5)
    # Equation 11 of the paper: both become the geometric mean of what they were.
    np.testing.assert_allclose(sizes[1][0], np.sqrt(sizes[0][0] * sizes[0][1]), rtol=1e-5)
    factors = np.sqrt(sizes[0][0] / sizes[0][1])
    np.testing.assert_allclose(new["b1"], old["b1"] / factors, rtol=1e-5)
    np.testing.assert_array_equal(new["b2"], old["b2"].astype(np.float32))
    assert told == {
        "make_a -> make_y": {
            "least": pytest.approx(factors.min()),
            "greatest": pytest.approx(factors.max()),
        }
    }


def test_depthwise_convolutions_are_balanced_on_both_sides():
    tables = tables_of(np.random.default_rng(1), depthwise=True)
    nodes = [
        node("Conv", ["x", "w1", "b1"], "a", pads=PADS),
        node("Relu", ["a"], "ra"),
        node("Conv", ["ra", "wd", "bd"], "d", pads=PADS, group=CHANNELS),
        node("Relu", ["d"], "rd"),
        node("Conv", ["rd", "w2", "b2"], "y", pads=PADS),
    ]
    before = model(nodes, tables)
    after, told = equalize(before, most=1e9)
    assert_same_outputs(before, after)
    assert set(told) == {"make_a -> make_d", "make_d -> make_y"}
    new = tables_in(after)
    sizes = [
        np.abs(new["w1"]).max(axis=(1, 2, 3)),
        np.abs(new["wd"]).max(axis=(1, 2, 3)),
        np.abs(new["w2"]).max(axis=(0, 2, 3)),
    ]
    # The rounds end when none changes a channel by more than a thousandth.
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=0.01)
    np.testing.assert_allclose(sizes[1], sizes[2], rtol=0.01)


def test_groups_keep_their_channels_apart():
    rng = np.random.default_rng(2)
    tables = tables_of(rng) | {"w2": uneven(rng, (4, CHANNELS // 2, 3, 3), 1)}
    nodes = [
        node("Conv", ["x", "w1", "b1"], "a", pads=PADS),
        node("Relu", ["a"], "b"),
        node("Conv", ["b", "w2", "b2"], "y", pads=PADS, group=2),
    ]
    before = model(nodes, tables)
    after, told = equalize(before, most=1e6)
    assert told
    assert_same_outputs(before, after)
    new = tables_in(after)
    second = new["w2"].reshape(2, 2, CHANNELS // 2, 3, 3)
    behind = np.abs(second).max(axis=(1, 3, 4)).ravel()
    np.testing.assert_allclose(np.abs(new["w1"]).max(axis=(1, 2, 3)), behind, rtol=1e-5)


def test_gemms_are_balanced_with_their_factors():
    rng = np.random.default_rng(3)
    tables = {
        "w1": uneven(rng, (CHANNELS, 5), 0),
        "b1": rng.standard_normal((1, CHANNELS)),
        "w2": uneven(rng, (CHANNELS, 4), 0),
        "b2": rng.standard_normal(4),
    }
    nodes = [
        node("Gemm", ["x", "w1", "b1"], "a", transB=1, alpha=0.5, beta=2.0),
        node("Relu", ["a"], "b"),
        node("Gemm", ["b", "w2", "b2"], "y", beta=3.0),
    ]
    before = model(nodes, tables, ("N", 5))
    after, told = equalize(before)
    assert set(told) == {"make_a -> make_y"}
    assert_same_outputs(before, after, (7, 5))


def test_products_of_matrices_are_balanced_along_their_last_axis():
    rng = np.random.default_rng(8)
    tables = {"w1": uneven(rng, (5, CHANNELS), 1), "w2": uneven(rng, (CHANNELS, 4), 0)}
    nodes = [
        node("MatMul", ["x", "w1"], "a"),
        node("Relu", ["a"], "b"),
        node("MatMul", ["b", "w2"], "y"),
    ]
    before = model(nodes, tables, ("N", 3, 5))
    after, told = equalize(before, most=1e6)
    assert told
    assert_same_outputs(before, after, (2, 3, 5))
    new = tables_in(after)
    sizes = [np.abs(new["w1"]).max(axis=0), np.abs(new["w2"]).max(axis=1)]
    np.testing.assert_allclose(*sizes, rtol=1e-5)


def test_transposed_convolutions_are_balanced_along_their_own_axes():
    rng = np.random.default_rng(4)
    tables = {
        "w1": uneven(rng, (3, CHANNELS, 2, 2), 1),
        "b1": rng.standard_normal(CHANNELS),
        "w2": uneven(rng, (CHANNELS, 4, 2, 2), 0),
        "b2": rng.standard_normal(4),
    }
    nodes = [
        node("ConvTranspose", ["x", "w1", "b1"], "a", strides=[2, 2]),
        node("LeakyRelu", ["a"], "b"),
        node("ConvTranspose", ["b", "w2", "b2"], "y", strides=[2, 2]),
    ]
    before = model(nodes, tables)
    after, told = equalize(before, most=1e6)
    assert told
    assert_same_outputs(before, after)
    new = tables_in(after)
    sizes = [np.abs(new["w1"]).max(axis=(0, 2, 3)), np.abs(new["w2"]).max(axis=(1, 2, 3))]
    np.testing.assert_allclose(*sizes, rtol=1e-5)


BOUND = {"low": np.array(0), "high": np.array(6)}
BLOCKED = {
    "Clip, which is Relu6": ([node("Clip", ["a", "low", "high"], "b")], {}),
    "Sigmoid": ([node("Sigmoid", ["a"], "b")], {}),
    "Add of a constant": ([node("Add", ["a", "high"], "b")], {}),
    "a second reader": (
        [node("Relu", ["a"], "b")],
        {"extra": [node("Neg", ["b"], "z")], "outputs": ("y", "z")},
    ),
    "an output of the graph": ([node("Relu", ["a"], "b")], {"outputs": ("y", "b")}),
    "a second reader before the Relu": (
        [node("Relu", ["a"], "b")],
        {"extra": [node("Neg", ["a"], "z")], "outputs": ("y", "z")},
    ),
}


@pytest.mark.parametrize("case", BLOCKED)
def test_what_would_change_the_outputs_blocks_it(case):
    between, settings = BLOCKED[case]
    tables = tables_of(np.random.default_rng(0)) | BOUND
    before = conv_pair(between, tables=tables, **settings)
    after, told = equalize(before)
    assert told == {}
    for name, values in tables_in(before).items():
        assert np.array_equal(values, tables_in(after)[name])


def test_computed_weights_block_it():
    tables = tables_of(np.random.default_rng(0))
    before = conv_pair([node("Neg", ["w2"], "n"), node("Relu", ["a"], "b")], tables=tables)
    before.graph.node[-1].input[1] = "n"
    assert equalize(before)[1] == {}


def test_shared_weights_stay_for_their_other_reader():
    tables = tables_of(np.random.default_rng(5))
    before = conv_pair(
        [node("Relu", ["a"], "b")],
        extra=[node("Conv", ["x", "w1", "b1"], "z", pads=PADS)],
        outputs=("y", "z"),
        tables=tables,
    )
    after, told = equalize(before)
    assert told
    assert_same_outputs(before, after)
    np.testing.assert_array_equal(tables_in(after)["w1"], tables_in(before)["w1"])
    onnx.checker.check_model(after)


def test_one_weight_on_both_sides_is_balanced_as_two():
    tables = tables_of(np.random.default_rng(6))
    nodes = [
        node("Conv", ["x", "w", "b"], "a", pads=PADS),
        node("Relu", ["a"], "r"),
        node("Conv", ["r", "w", "b"], "y", pads=PADS),
    ]
    shared = {"w": uneven(np.random.default_rng(6), (3, 3, 3, 3), 0), "b": tables["b1"][:3]}
    before = model(nodes, shared)
    after, told = equalize(before)
    assert told
    assert_same_outputs(before, after)


def test_dead_channels_keep_their_bias_and_no_factor_leaves_its_bounds():
    tables = tables_of(np.random.default_rng(7))
    tables["w1"][0] = 0
    tables["w2"][:, 1] = 0
    tables["w1"][2] *= 1e-9
    before = conv_pair([node("Relu", ["a"], "b")], tables=tables)
    after, told = equalize(before, most=10)
    assert_same_outputs(before, after)
    old, new = tables_in(before), tables_in(after)
    assert (new["b1"][:2] == old["b1"][:2]).all()
    assert new["b1"][2] == pytest.approx(10 * old["b1"][2])
    (factors,) = told.values()
    assert 0.1 * (1 - 1e-9) <= factors["least"] <= factors["greatest"] <= 10 * (1 + 1e-9)


def test_the_given_graph_stays_as_it_was():
    before = conv_pair(BETWEEN["Relu"])
    as_bytes = before.SerializeToString()
    equalize(before)
    assert before.SerializeToString() == as_bytes


def test_rounding_whole_weights_hurts_less_after_equalization():
    before = conv_pair(BETWEEN["Relu"])
    after, _ = equalize(before)
    x = np.random.default_rng(9).standard_normal((2, 3, 8, 8)).astype(np.float32)

    def rounded(net):
        copy = onnx.ModelProto()
        copy.CopyFrom(net)
        for each in copy.graph.initializer:
            values = numpy_helper.to_array(each)
            if values.ndim == 4:
                step = np.abs(values).max() / 127
                fixed = np.rint(values / step).astype(np.float32) * step
                each.CopyFrom(numpy_helper.from_array(fixed.astype(np.float32), each.name))
        return copy

    def output(net):
        return OrtSession(Artifact("onnx", net), threads=1).run({"x": x})["y"].astype(float)

    wanted = output(before)
    noise = [np.square(output(rounded(net)) - wanted).mean() for net in (before, after)]
    assert noise[1] < 0.5 * noise[0]
