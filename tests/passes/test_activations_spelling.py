"""Activations in operators that have integer kernels, and back."""

import numpy as np
import pytest
from activation_graphs import CHANNELS, Net, clip, run, types
from conftest import SATURATES
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession, optimized
from aigc_compress.errors import PassError
from aigc_compress.passes import ActivationsConfig, Context, QuantizeConfig
from aigc_compress.passes.activations import ActivationsPass
from aigc_compress.passes.quantize import QuantizePass


def spelled(model, feeds, **settings):
    config, context = ActivationsConfig(**settings), Context((feeds,))
    done = ActivationsPass().run(Artifact("onnx", model), config, context)
    return done.payload, done.history[-1].numbers


def test_spelled_for_integers_the_factors_of_a_hard_swish_go_into_the_conv_before_it():
    net = Net(opset=14)
    net.add("HardSwish", net.conv("x"))
    before, feeds = net.model(), net.feeds()
    after, numbers = spelled(before, feeds)
    assert types(after) == {"Conv": 1, "Add": 1, "Clip": 1, "Mul": 1}
    assert numbers == {"written": 1, "absorbed": 1}
    np.testing.assert_allclose(run(after, feeds), run(before, feeds), atol=1e-5)


def test_spelled_for_integers_a_hard_sigmoid_behind_a_conv_is_a_clip():
    net = Net()
    net.add("HardSigmoid", net.conv("x"), alpha=1 / 6, beta=0.5)
    before, feeds = net.model(), net.feeds()
    after, _ = spelled(before, feeds)
    assert types(after) == {"Conv": 1, "Clip": 1}
    np.testing.assert_allclose(run(after, feeds), run(before, feeds), atol=1e-6)


def test_a_ramp_of_slope_one_needs_no_factor():
    net = Net()
    net.add("HardSigmoid", "x", alpha=1.0, beta=0.5)
    before, feeds = net.model(), net.feeds()
    after, _ = spelled(before, feeds)
    assert types(after) == {"Add": 1, "Clip": 1}
    np.testing.assert_allclose(run(after, feeds), run(before, feeds), atol=1e-6)


def test_sub_and_div_by_a_number_become_add_and_mul():
    net = Net()
    net.add("Relu", net.add("Div", net.add("Relu", net.add("Sub", "x", 0.75)), 3.0))
    before, feeds = net.model(), net.feeds()
    after, _ = spelled(before, feeds)
    assert types(after) == {"Relu": 2, "Add": 1, "Mul": 1}
    np.testing.assert_allclose(run(after, feeds), run(before, feeds), rtol=1e-6)


def test_a_hard_swish_of_a_sum_leaves_its_factor_to_the_conv_behind_it():
    net = Net(opset=14)
    total = net.add("Add", net.conv("x"), "x")
    net.conv(net.add("HardSwish", total))
    before, feeds = net.model(), net.feeds()
    after, _ = spelled(before, feeds)
    assert types(after) == {"Conv": 2, "Add": 2, "Clip": 1, "Mul": 1}
    np.testing.assert_allclose(run(after, feeds), run(before, feeds), atol=2e-5)


def test_a_value_that_others_read_too_is_not_scaled():
    net = Net(opset=14)
    inner = net.conv("x")
    net.add("Add", net.add("HardSwish", inner), inner)
    before, feeds = net.model(), net.feeds()
    after, _ = spelled(before, feeds)
    np.testing.assert_allclose(run(after, feeds), run(before, feeds), atol=1e-5)


def test_the_float_spelling_undoes_the_one_for_integers():
    net = Net(opset=14)
    net.conv(net.add("HardSwish", net.conv("x")))
    before, feeds = net.model(), net.feeds()
    there, _ = spelled(before, feeds)
    back, _ = spelled(there, feeds, spelling="float")
    assert types(back) == {"Conv": 2, "HardSigmoid": 1, "Mul": 1}
    np.testing.assert_allclose(run(back, feeds), run(before, feeds), atol=2e-5)


def test_the_float_spelling_reaches_what_a_split_leaves_on_floats():
    net = Net(opset=14)
    net.conv(net.add("HardSwish", net.conv(net.add("HardSwish", net.conv("x")))))
    before, feeds = net.model(), net.feeds()
    friendly, _ = spelled(before, feeds)
    context = Context((feeds,), (feeds,))
    first = [node.name for node in friendly.graph.node][:4]
    config = QuantizeConfig(mode="static", only=tuple(first))
    split = QuantizePass().run(Artifact("onnx", friendly), config, context).payload
    after, numbers = spelled(split, feeds, spelling="float")
    assert numbers == {"written": 1, "absorbed": 1}
    found = types(optimized(after))
    assert found["HardSigmoid"] == found["QLinearConv"] == 1
    assert "Clip" not in found
    # a float that falls on the other side of a rounding moves by one of 255 steps
    assert lowest_agreement_db([{"y": run(split, feeds)}], [{"y": run(after, feeds)}]) > 40


def test_a_graph_without_such_activations_comes_back_itself():
    net = Net()
    net.add("Relu", net.conv("x"))
    before = net.model()
    after, numbers = spelled(before, net.feeds())
    assert after is before
    assert numbers == {"written": 0, "absorbed": 0}


def test_a_graph_that_does_not_agree_enough_is_refused():
    net = Net(opset=14)
    net.conv(net.add("HardSwish", net.conv("x")))
    with pytest.raises(PassError, match="dB is asked for"):
        spelled(net.model(), net.feeds(), least_sqnr_db=199.0)


def squeeze_and_excite(net, x):
    pooled = net.conv(net.add("GlobalAveragePool", x))
    return net.add("Mul", x, net.add("HardSigmoid", net.conv(net.add("Relu", pooled))))


def test_a_quantized_block_of_mobilenetv3_runs_on_integers_from_end_to_end():
    net = Net(opset=14)
    inner = net.add("HardSwish", net.conv("x"))
    gated = squeeze_and_excite(net, inner)
    net.conv(net.add("HardSwish", gated))
    before = net.model()
    feeds = [net.feeds() for _ in range(3)]
    friendly, _ = spelled(before, feeds[0])
    context = Context(tuple(feeds), tuple(feeds))
    config = QuantizeConfig(mode="static", reduce_range=SATURATES)
    done = QuantizePass().run(Artifact("onnx", friendly), config, context).payload
    found = types(optimized(done))
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1
    assert all(op.startswith("QLinear") or op.endswith("eLinear") for op in found)
    sessions = [OrtSession(Artifact("onnx", each), threads=1) for each in (before, done)]
    outputs = [[session.run(each) for each in feeds] for session in sessions]
    assert lowest_agreement_db(*outputs) > 20  # 8 bits in a row of ten operators


numbers = st.floats(0.125, 8).map(lambda value: float(np.float32(value)))


@settings(deadline=None, max_examples=60)
@given(
    slope=numbers,
    offset=st.floats(-4, 4).map(lambda value: float(np.float32(value))),
    height=numbers,
    gain=numbers,
    opset=st.integers(11, 21),
    conv_before=st.booleans(),
    conv_behind=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_gate_computes_the_same_in_every_spelling(
    slope, offset, height, gain, opset, conv_before, conv_behind, seed
):
    net = Net(opset=opset, seed=seed, shape=("n", CHANNELS, "h", "w"))
    x = net.conv("x") if conv_before else "x"
    ramp = clip(net, net.add("Add", net.add("Mul", x, slope), offset), 0.0, height)
    gated = net.add("Mul", net.add("Mul", ramp, x), gain)
    if conv_behind:
        net.conv(gated)
    before, feeds = net.model(), net.feeds((1, CHANNELS, 3, 6))
    reference = run(before, feeds)
    for spelling in ("float", "integer"):
        after, numbers = spelled(before, feeds, spelling=spelling)
        assert numbers["written"] == 1
        assert "HardSigmoid" in types(after) or spelling == "integer"
        # Gains up to 512 magnify the rounding of the constants.
        tolerance = 1e-5 * max(1.0, float(np.abs(reference).max()))
        np.testing.assert_allclose(run(after, feeds), reference, atol=tolerance)
