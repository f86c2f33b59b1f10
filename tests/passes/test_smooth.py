"""Smoothed activations: the same outputs, with channels that differ less."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError, UsageError
from aigc_compress.passes.smooth import smooth, smoothable

PADS = [1, 1, 1, 1]


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], name=f"make_{output}", **attributes)


def model(nodes, tables, x_shape, *, outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(t, np.float32), name) for name, t in tables.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = onnx.shape_inference.infer_shapes(made)
    onnx.checker.check_model(made)
    return made


def tables_in(net):
    return {each.name: numpy_helper.to_array(each).astype(float) for each in net.graph.initializer}


def uneven(rng, shape, axis):
    """Return numbers whose channels along an axis are of very different sizes, 0.03 to 30."""
    sizes = 10.0 ** rng.uniform(-1.5, 1.5, shape[axis])
    return rng.standard_normal(shape) * sizes.reshape(
        [-1 if a == axis else 1 for a in range(len(shape))]
    )


def run(net, x):
    return OrtSession(Artifact("onnx", net), threads=1).run({"x": x})


def seen(net, name, x):
    """Return an inner tensor."""
    probe = onnx.ModelProto()
    probe.CopyFrom(net)
    probe.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return run(probe, x)[name].astype(float)


def assert_same_outputs(before, after, x):
    wanted, found = run(before, x), run(after, x)
    assert set(wanted) == set(found)
    for name, values in wanted.items():
        # Relative to the largest value: float32 sums of terms of very different sizes.
        assert np.abs(found[name] - values).max() <= 2e-5 * np.abs(values).max()


def x_of(rng, shape):
    return rng.standard_normal(shape).astype(np.float32)


def norm_and_products(rng, *, width=8, heads=(5, 3)):
    """LayerNormalization with uneven scales, read by two MatMuls, as queries and keys are."""
    tables = {"s": uneven(rng, (width,), 0), "t": uneven(rng, (width,), 0)}
    nodes = [node("LayerNormalization", ["x", "s", "t"], "h")]
    for index, size in enumerate(heads):
        tables[f"w{index}"] = rng.standard_normal((width, size))
        nodes.append(node("MatMul", ["h", f"w{index}"], f"y{index}"))
    outputs = tuple(f"y{index}" for index in range(len(heads)))
    return model(nodes, tables, ("N", 4, width), outputs=outputs)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_factors_are_those_of_the_paper(alpha):
    rng = np.random.default_rng(0)
    before, x = norm_and_products(rng), x_of(rng, (6, 4, 8))
    after, told = smooth(before, [{"x": x[:3]}, {"x": x[3:]}], alpha=alpha, most=1e9)
    assert_same_outputs(before, after, x)
    old, new = tables_in(before), tables_in(after)
    activations = np.abs(seen(before, "h", x)).max(axis=(0, 1))
    weights = np.abs(np.concatenate([old["w0"], old["w1"]], axis=1)).max(axis=1)
    factors = activations**alpha / weights ** (1 - alpha)
    factors /= np.exp(np.log(factors).mean())
    for name in ("s", "t"):
        np.testing.assert_allclose(new[name], old[name] / factors, rtol=1e-5)
    for name in ("w0", "w1"):
        np.testing.assert_allclose(new[name], old[name] * factors[:, None], rtol=1e-5)
    assert told == {
        "h": {
            "least": pytest.approx(factors.min()),
            "greatest": pytest.approx(factors.max()),
            "layers": 2,
        }
    }
    assert smoothable(before) == ("h",)


def test_with_alpha_one_all_channels_become_equally_large():
    rng = np.random.default_rng(1)
    before, x = norm_and_products(rng), x_of(rng, (6, 4, 8))
    after, _ = smooth(before, [{"x": x}], alpha=1.0, most=1e9)
    sizes = np.abs(seen(after, "h", x)).max(axis=(0, 1))
    np.testing.assert_allclose(sizes, sizes.mean(), rtol=1e-4)


def chain(kind, rng, width=6):
    """Return nodes from x to h, tables, shape of x, nodes from h to y; channels of h are uneven."""
    conv = {"w": uneven(rng, (width, 3, 3, 3), 0), "b": uneven(rng, (width,), 0)}
    conv["v"] = rng.standard_normal((4, width, 3, 3))
    read = [node("Conv", ["h", "v"], "y", pads=PADS)]
    first = node("Conv", ["x", "w", "b"], "c", pads=PADS)
    images = (2, 3, 8, 8)
    flat = {"w": uneven(rng, (5, width), 1), "b": uneven(rng, (width,), 0)}
    flat["v"] = rng.standard_normal((width, 4))
    product = [node("MatMul", ["x", "w"], "c")]
    per_map = {"k": uneven(rng, (width, 1, 1), 0), "l": uneven(rng, (1, width, 1, 1), 1)}
    few, across = (2, 3, 8), (2, 3, 5)
    last = {"k": uneven(rng, (8,), 0), "l": uneven(rng, (8,), 0), "v": rng.standard_normal((8, 4))}
    matmul = [node("MatMul", ["h", "v"], "y")]
    depthwise = conv | {"v": rng.standard_normal((width, 1, 3, 3))}
    scaled = [node("Mul", ["x", "k"], "m"), node("Add", ["l", "m"], "h")]
    maps = [first, node("Mul", ["k", "c"], "m"), node("Add", ["m", "l"], "h")]
    pooled = [first, node("Relu", ["c"], "r"), node("MaxPool", ["r"], "h", kernel_shape=[2, 2])]
    group = [node("Conv", ["h", "v"], "y", pads=PADS, group=width)]
    gemm = [node("Gemm", ["x", "w", "b"], "h", alpha=0.5, beta=2.0)]
    one = flat | {"k": np.array(3.0)}
    return {
        "Conv, Relu": ([first, node("Relu", ["c"], "h")], conv, images, read),
        "Conv, Relu, MaxPool": (pooled, conv, images, read),
        "Conv, Mul, Add": (maps, conv | per_map, images, read),
        "depthwise": ([first, node("LeakyRelu", ["c"], "h")], depthwise, images, group),
        "Gemm": (gemm, flat, (7, 5), [node("Gemm", ["h", "v"], "y", beta=3.0)]),
        "MatMul": ([node("MatMul", ["x", "w"], "h")], flat, across, matmul),
        "MatMul, Add": ([*product, node("Add", ["c", "b"], "h")], flat, across, matmul),
        "Mul by one number": ([*product, node("Mul", ["c", "k"], "h")], one, across, matmul),
        "Mul, Add": (scaled, last, few, matmul),
    }[kind]


CHAINS = (
    *("Conv, Relu", "Conv, Relu, MaxPool", "Conv, Mul, Add", "depthwise", "Gemm", "MatMul"),
    *("MatMul, Add", "Mul by one number", "Mul, Add"),
)


@pytest.mark.parametrize("kind", CHAINS)
def test_outputs_stay_and_channels_differ_less(kind):
    rng = np.random.default_rng(4)
    first, tables, x_shape, second = chain(kind, rng)
    x = x_of(rng, x_shape)
    before = model([*first, *second], tables, x_shape)
    as_bytes = before.SerializeToString()
    after, told = smooth(before, [{"x": x}])
    assert before.SerializeToString() == as_bytes
    assert set(told) == {"h"}
    assert_same_outputs(before, after, x)
    onnx.checker.check_model(after)
    assert [each.name for each in after.graph.node] == [each.name for each in before.graph.node]
    axis = 1 if x.ndim != 3 else 2
    sizes = []
    for net in (before, after):
        values = np.moveaxis(seen(net, "h", x), axis, 0)
        sizes.append(np.abs(values).reshape(values.shape[0], -1).max(axis=1))
    is_alive = sizes[0] > 0
    spreads = [each[is_alive].max() / each[is_alive].min() for each in sizes]
    assert spreads[1] < 0.7 * spreads[0]


def more(*nodes, outputs=("y",), **tables):
    return nodes, outputs, tables


BLOCKED = {
    "a reader that is no layer": more(node("Neg", ["h"], "z"), outputs=("y", "z")),
    "an output of the graph": more(outputs=("y", "h")),
    "a reader inside, before the Relu": more(node("Neg", ["c"], "z"), outputs=("y", "z")),
}


@pytest.mark.parametrize("case", BLOCKED)
def test_what_would_change_the_outputs_blocks_it(case):
    nodes, outputs, _ = BLOCKED[case]
    rng = np.random.default_rng(5)
    first, tables, x_shape, second = chain("Conv, Relu", rng)
    before = model([*first, *second, *nodes], tables, x_shape, outputs=outputs)
    after, told = smooth(before, [{"x": x_of(rng, x_shape)}])
    assert told == {}
    assert smoothable(before) == ()
    for name, values in tables_in(before).items():
        assert np.array_equal(values, tables_in(after)[name])


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Softmax"])
def test_an_activation_that_no_factor_passes_blocks_it(op):
    rng = np.random.default_rng(6)
    _, tables, x_shape, second = chain("Conv, Relu", rng)
    first = [node("Conv", ["x", "w", "b"], "c", pads=PADS), node(op, ["c"], "h")]
    assert smoothable(model([*first, *second], tables, x_shape)) == ()


def test_a_norm_over_other_axes_than_the_channels_blocks_it():
    rng = np.random.default_rng(7)
    tables = {"s": rng.standard_normal((4, 8)), "w": rng.standard_normal((8, 3))}
    nodes = [node("LayerNormalization", ["x", "s"], "h", axis=1), node("MatMul", ["h", "w"], "y")]
    assert smoothable(model(nodes, tables, (2, 4, 8))) == ()


def test_dead_channels_and_weights_keep_their_numbers_and_factors_their_bounds():
    rng = np.random.default_rng(8)
    before, x = norm_and_products(rng, heads=(5,)), x_of(rng, (2, 4, 8))
    old = tables_in(before)
    old["s"][:2], old["t"][:2], old["w0"][2] = 0, 0, 0
    old["s"][3] *= 1e-7
    old["t"][3] *= 1e-7
    for each in before.graph.initializer:
        each.CopyFrom(numpy_helper.from_array(old[each.name].astype(np.float32), each.name))
    after, told = smooth(before, [{"x": x}], most=10)
    assert_same_outputs(before, after, x)
    new = tables_in(after)
    np.testing.assert_array_equal(new["w0"][:3], tables_in(before)["w0"][:3])
    assert 0.1 * (1 - 1e-9) <= told["h"]["least"] <= told["h"]["greatest"] <= 10 * (1 + 1e-9)


def test_others_that_read_the_same_tables_keep_them():
    rng = np.random.default_rng(9)
    tables = {"s": uneven(rng, (8,), 0), "w": rng.standard_normal((8, 3))}
    nodes = [
        node("LayerNormalization", ["x", "s"], "h"),
        node("MatMul", ["h", "w"], "y"),
        node("Mul", ["x", "s"], "z"),
        node("MatMul", ["x", "w"], "u"),
    ]
    before, x = model(nodes, tables, (2, 4, 8), outputs=("y", "z", "u")), x_of(rng, (2, 4, 8))
    after, told = smooth(before, [{"x": x}])
    assert set(told) == {"h"}
    assert_same_outputs(before, after, x)


def test_wrong_settings_and_missing_feeds_are_refused():
    before = norm_and_products(np.random.default_rng(0))
    with pytest.raises(UsageError, match=r"alpha is 1\.5"):
        smooth(before, [], alpha=1.5)
    with pytest.raises(PassError, match="needs calibration feeds"):
        smooth(before, [])


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(CHAINS),
    seed=st.integers(0, 1000),
    alpha=st.floats(0, 1),
    width=st.integers(1, 9),
)
def test_outputs_stay_for_all_shapes_and_alphas(kind, seed, alpha, width):
    rng = np.random.default_rng(seed)
    first, tables, x_shape, second = chain(kind, rng, width)
    before, x = model([*first, *second], tables, x_shape), x_of(rng, x_shape)
    after, told = smooth(before, [{"x": x}], alpha=alpha)
    assert set(told) == {"h"}
    assert_same_outputs(before, after, x)
