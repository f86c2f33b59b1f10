"""Activations under their own names, on floats."""

import numpy as np
import onnx
import pytest
from activation_graphs import CHANNELS, Net, clip, run, types
from onnx import TensorProto, helper

from aigc_compress.artifact import Artifact
from aigc_compress.passes import Context, FoldConfig
from aigc_compress.passes.fold import FoldPass
from aigc_compress.passes.folding import absorb_affine, name_activations

SWISHES = {
    "divided last": lambda n, x: n.add("Div", n.add("Mul", x, ramp6(n, x)), 6.0),
    "divided in the gate": lambda n, x: n.add("Mul", n.add("Div", ramp6(n, x), 6.0), x),
    "divided first": lambda n, x: n.add("Mul", n.add("Mul", x, 1 / 6), ramp6(n, x)),
    "with Max and Min": lambda n, x: n.add(
        "Mul",
        n.add("Mul", x, n.add("Min", n.add("Max", n.add("Add", 3.0, x), 0.0), [6.0])),
        1 / 6,
    ),
    "with Sub and Relu": lambda n, x: n.add(
        "Mul", x, n.add("Div", n.add("Min", n.add("Relu", n.add("Sub", x, -3.0)), 6.0), 6.0)
    ),
}


def ramp6(net, x):
    return clip(net, net.add("Add", x, [3.0]), 0.0, 6.0)


def hard_swish(x):
    """Return x min(max(x + 3, 0), 6) / 6, as the paper of MobileNetV3 writes it."""
    return x * np.minimum(np.maximum(x + 3, 0), 6) / 6


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("swish", SWISHES.values(), ids=SWISHES)
def test_a_written_out_hard_swish_becomes_two_operators(swish, opset):
    net = Net(opset=opset)
    swish(net, "x")
    after, count = name_activations(net.model())
    feeds = net.feeds()
    assert (types(after), count) == ({"HardSigmoid": 1, "Mul": 1}, 1)
    # both round their constants to float32
    np.testing.assert_allclose(run(after, feeds), hard_swish(feeds["x"]), atol=2e-6, rtol=1e-6)


def test_a_hard_swish_with_its_division_elsewhere_becomes_one_behind_a_conv():
    net = Net()
    inner = net.conv("x")
    net.conv(net.add("Mul", inner, ramp6(net, inner)))
    before, feeds = net.model(), net.feeds()
    after, _ = absorb_affine(name_activations(before)[0])
    assert types(after) == {"Conv": 2, "HardSigmoid": 1, "Mul": 1}
    np.testing.assert_allclose(run(after, feeds), run(before, feeds), atol=2e-5)


def test_onnxruntime_joins_a_named_hard_swish_with_its_conv(tmp_path):
    import onnxruntime

    net = Net(shape=(1, 16, 8, 8))
    weights = net.constant(net.rng.standard_normal((16, 16, 1, 1)))
    inner = SWISHES["divided last"](net, net.add("Conv", "x", weights))
    net.add("Conv", inner, weights)
    named, _ = name_activations(net.model())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.InferenceSession(named.SerializeToString(), options)
    found = types(onnx.load(tmp_path / "run.onnx"))
    if "ReorderOutput" not in found:
        pytest.skip("This processor has no blocked convolutions.")
    assert found == {"ReorderInput": 1, "Conv": 2, "ReorderOutput": 1}


def test_a_written_out_hard_sigmoid_becomes_one_operator():
    net = Net()
    net.add("Div", ramp6(net, "x"), 6.0)
    after, count = name_activations(net.model())
    x = net.feeds()["x"]
    assert (types(after), count) == ({"HardSigmoid": 1}, 1)
    np.testing.assert_allclose(run(after, {"x": x}), np.clip(x / 6 + 0.5, 0, 1), atol=1e-6)


def test_a_relu6_stays_as_it_is():
    net = Net()
    clip(net, net.conv("x"), 0.0, 6.0)
    assert name_activations(net.model())[1] == 0


@pytest.mark.parametrize(
    "build",
    [
        lambda n: n.add("Mul", "x", clip(n, n.add("Add", "x", 3.0), 1.0, 6.0)),
        lambda n: n.add("Mul", n.conv("x"), ramp6(n, "x")),
        lambda n: n.add("Mul", "x", clip(n, n.add("Sub", 3.0, "x"), 0.0, 6.0)),
        lambda n: n.add("Mul", "x", clip(n, n.add("Add", "x", [[3.0]]), 0.0, 6.0)),
        lambda n: n.add("Mul", "x", clip(n, n.add("Add", "x", [3.0, 2.0, 1.0]), 0.0, 6.0)),
        lambda n: n.add("Mul", "x", clip(n, n.add("Mul", "x", 0.0), 0.0, 6.0)),
    ],
    ids=["raised", "of another value", "falling", "of two axes", "of a table", "flat"],
)
def test_what_is_no_hard_swish_stays(build):
    net = Net()
    build(net)
    before = net.model()
    assert name_activations(before) == (before, 0)


def test_a_ramp_that_is_read_elsewhere_stays():
    net = Net()
    ramp = ramp6(net, "x")
    net.add("Add", net.add("Mul", "x", ramp), ramp)
    before = net.model()
    assert name_activations(before) == (before, 0)


def test_a_factor_that_is_an_output_of_its_own_stays():
    net = Net()
    sixth = net.add("Mul", "x", 1 / 6)
    net.add("Mul", sixth, ramp6(net, "x"))
    before = net.model()
    before.graph.output.append(helper.make_tensor_value_info(sixth, TensorProto.FLOAT, None))
    assert name_activations(before) == (before, 0)


def test_doubles_stay():
    net = Net(kind=TensorProto.DOUBLE)
    three, none, six = (net.constant(each, np.float64) for each in (3, 0, 6))
    net.add("Mul", "x", net.add("Clip", net.add("Add", "x", three), none, six))
    before = net.model()
    assert name_activations(before) == (before, 0)


def test_a_prelu_of_one_slope_becomes_a_leaky_relu():
    net = Net()
    net.add("PRelu", "x", np.full((CHANNELS, 1, 1), 0.25))
    after, _ = name_activations(net.model())
    x = net.feeds()["x"]
    assert types(after) == {"LeakyRelu": 1}
    np.testing.assert_array_equal(run(after, {"x": x}), np.where(x < 0, x * np.float32(0.25), x))


def test_a_prelu_of_several_slopes_stays():
    net = Net()
    net.add("PRelu", "x", np.arange(CHANNELS).reshape(-1, 1, 1))
    before = net.model()
    assert name_activations(before) == (before, 0)


@pytest.mark.parametrize("keeps", [0, 1])
@pytest.mark.parametrize("axes", [(2, 3), (-1, -2)])
@pytest.mark.parametrize("opset", [17, 18])
def test_a_mean_over_all_spatial_axes_becomes_a_pooling(opset, axes, keeps):
    net = Net(opset=opset, shape=("n", CHANNELS, "h", "w"))
    if opset < 18:
        net.add("ReduceMean", "x", axes=axes, keepdims=keeps)
    else:
        net.add("ReduceMean", "x", net.constant(axes, np.int64), keepdims=keeps)
    after, _ = name_activations(net.model())
    feeds = net.feeds()
    assert types(after) == {"GlobalAveragePool": 1, **({} if keeps else {"Flatten": 1})}
    found = run(after, feeds)
    expected = feeds["x"].astype(np.float64).mean((2, 3), keepdims=bool(keeps))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("axes", [[1, 2, 3], [2], [1]])
def test_a_mean_over_other_axes_stays(axes):
    net = Net()
    net.add("ReduceMean", "x", axes=axes)
    before = net.model()
    assert name_activations(before) == (before, 0)


def test_folding_names_activations_and_keeps_the_face():
    net = Net(shape=("n", CHANNELS, "h", 3))
    net.conv(SWISHES["divided last"](net, net.conv("x")))
    before, feeds = net.model(), net.feeds((3, CHANNELS, 4, 3))
    done = FoldPass().run(Artifact("onnx", before), FoldConfig(), Context((feeds,)))
    assert types(done.payload) == {"Conv": 2, "HardSigmoid": 1, "Mul": 1}
    assert done.payload.graph.input == before.graph.input
    assert not done.history[-1].numbers["given_up"]
