"""Activations under their own names on floats, and in operators with integer kernels."""

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession, optimized
from aigc_compress.errors import PassError
from aigc_compress.passes import ActivationsConfig, Context, FoldConfig, QuantizeConfig
from aigc_compress.passes.activations import ActivationsPass
from aigc_compress.passes.fold import FoldPass
from aigc_compress.passes.folding import absorb_affine, name_activations
from aigc_compress.passes.quantize import QuantizePass

CHANNELS = 4


class Net:
    """Writes a graph from x to the output of its last node, operator by operator."""

    def __init__(self, *, opset=17, shape=(2, CHANNELS, 5, 3), seed=0, kind=TensorProto.FLOAT):
        self.opset, self.shape, self.kind = opset, shape, kind
        self.rng = np.random.default_rng(seed)
        self.nodes, self.tables = [], {}

    def constant(self, value, dtype=np.float32):
        name = f"c{len(self.tables)}"
        self.tables[name] = np.asarray(value, dtype)
        return name

    def add(self, op, *inputs, **attributes):
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], name=output, **attributes))
        return output

    def conv(self, x):
        weights = self.rng.standard_normal((CHANNELS, CHANNELS, 1, 1))
        return self.add("Conv", x, weights, self.rng.standard_normal(CHANNELS))

    def model(self):
        last = self.nodes[-1].output[0]
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", self.kind, self.shape)],
            [helper.make_tensor_value_info(last, TensorProto.UNDEFINED, None)],
            [numpy_helper.from_array(table, name) for name, table in self.tables.items()],
        )
        imports = [helper.make_opsetid("", self.opset)]
        made = helper.make_model(graph, opset_imports=imports, ir_version=8)
        made.graph.output[0].type.tensor_type.elem_type = self.kind
        return made

    def feeds(self, sizes=(2, CHANNELS, 5, 3)):
        """Return values that reach far beyond both ends of a HardSwish's ramp."""
        return {"x": (4 * self.rng.standard_normal(sizes)).astype(np.float32)}


def clip(net, x, low, high):
    return net.add("Clip", x, low, high)


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


def run(model, feeds):
    (output,) = OrtSession(Artifact("onnx", model), threads=1).run(feeds).values()
    return output


def types(model):
    return dict(Counter(node.op_type for node in model.graph.node))


def spelled(model, feeds, **settings):
    config, context = ActivationsConfig(**settings), Context((feeds,))
    done = ActivationsPass().run(Artifact("onnx", model), config, context)
    return done.payload, done.history[-1].numbers


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
    config = QuantizeConfig(mode="static")
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
