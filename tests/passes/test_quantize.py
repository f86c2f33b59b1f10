from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import lowest_agreement_db, sqnr_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError
from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.fold import FoldConfig, FoldPass
from aigc_compress.passes.quantize import QuantizePass
from aigc_compress.passes.saturation import find_saturation

RNG = np.random.default_rng(0)


def weight(name, *shape):
    return numpy_helper.from_array((RNG.standard_normal(shape) * 0.1).astype(np.float32), name)


def model(nodes, initializers, x_shape, *, opset=17, inputs=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape), *inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return Artifact("onnx", onnx.shape_inference.infer_shapes(made))


def context(*shape, count=8):
    feeds = tuple({"x": RNG.standard_normal(shape).astype(np.float32)} for _ in range(count))
    return Context(feeds[:2], feeds)


def conv_net():
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], name="conv1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["y"], pads=[1, 1, 1, 1], name="conv2"),
    ]
    weights = [weight("w1", 16, 3, 3, 3), weight("b1", 16), weight("w2", 16, 16, 3, 3)]
    return model(nodes, weights, ["N", 3, 8, 8])


def transposed_net():
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w1"], ["c1"], strides=[2, 2], name="up1"),
        helper.make_node("LeakyRelu", ["c1"], ["r1"], name="leaky1"),
        helper.make_node("ConvTranspose", ["r1", "w2"], ["y"], strides=[2, 2], name="up2"),
    ]
    return model(nodes, [weight("w1", 8, 32, 4, 4), weight("w2", 32, 3, 4, 4)], ["N", 8, 4, 4])


def lstm_net():
    nodes = [helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=32, name="lstm")]
    weights = [weight("w", 1, 128, 16), weight("r", 1, 128, 32), weight("b", 1, 256)]
    return model(nodes, weights, ["T", "N", 16])


def quantized(artifact, ctx, **settings):
    result = QuantizePass().run(artifact, QuantizeConfig(**settings), ctx)
    return result, result.history[-1].numbers


def agreement_db(before, after, ctx):
    sessions = [OrtSession(each, threads=1) for each in (before, after)]
    wanted, found = (session.run(ctx.check_feeds[0])["y"] for session in sessions)
    return sqnr_db(wanted, found)


def test_convolutions_run_on_integers_and_stay_close():
    ctx = context(1, 3, 8, 8)
    before = conv_net()
    after, numbers = quantized(before, ctx)
    assert numbers["operators"]["int8"]["QLinearConv"] == 2
    assert "Conv" not in numbers["operators"]["float"]
    # 8 bits over a few sigma of normal data give about 35 dB per layer.
    assert agreement_db(before, after, ctx) > 25


def test_a_reduced_range_keeps_two_products_within_int16():
    after, numbers = quantized(conv_net(), context(1, 3, 8, 8), reduce_range=True)
    integers = [numpy_helper.to_array(i) for i in after.payload.graph.initializer]
    weights = [i for i in integers if i.dtype == np.int8 and i.ndim == 4]
    assert len(weights) == 2
    assert not any(each.is_possible for each in find_saturation(after.payload))
    assert "within int16" in numbers["scheme"]["static"]["weights"]


def test_transposed_convolutions_store_int8_weights_and_say_why_they_stay_float():
    ctx = context(1, 8, 4, 4)
    before = transposed_net()
    after, numbers = quantized(before, ctx)
    assert numbers["operators"]["float"]["ConvTranspose"] == 2
    # Nothing is left of the stored form at run time: it is folded when the graph is loaded.
    assert not {"Cast", "Mul"} & set(numbers["operators"]["float"])
    (reason,) = numbers["operators"]["reasons"]["ConvTranspose"]
    assert "no integer kernel" in reason
    assert "stored as INT8" in reason
    assert numbers["operators"]["weights_only"] == {"ConvTranspose": 2}
    assert numbers["scheme"]["weights_only"]["operators"] == ["ConvTranspose"]
    floats = [
        i.name
        for i in after.payload.graph.initializer
        if i.data_type == TensorProto.FLOAT and np.prod(i.dims) >= 1024
    ]
    assert floats == []
    assert agreement_db(before, after, ctx) > 30


def test_stored_transposed_weights_are_the_rounded_ones_per_output_channel():
    before = transposed_net()
    after, _ = quantized(before, context(1, 8, 4, 4))
    tables = {i.name: numpy_helper.to_array(i) for i in after.payload.graph.initializer}
    original = {i.name: numpy_helper.to_array(i) for i in before.payload.graph.initializer}
    cast, scaled = after.payload.graph.node[:2]
    assert (cast.op_type, scaled.op_type) == ("Cast", "Mul")
    integers, scale = tables[cast.input[0]], tables[scaled.input[1]].ravel()
    assert integers.dtype == np.int8
    wanted = original["w1"]
    for channel in range(wanted.shape[1]):
        assert scale[channel] == pytest.approx(np.abs(wanted[:, channel]).max() / 127)
        error = integers[:, channel] * scale[channel] - wanted[:, channel]
        assert np.abs(error).max() <= scale[channel] * 0.5001


def test_a_float_activation_between_float_operators_is_left_alone():
    after, _ = quantized(transposed_net(), context(1, 8, 4, 4))
    assert "QuantizeLinear" not in Counter(n.op_type for n in after.payload.graph.node)


def test_lstm_becomes_the_integer_operator_and_stays_close():
    ctx = context(5, 2, 16)
    before = lstm_net()
    after, numbers = quantized(before, ctx)
    assert numbers["operators"]["int8"] == {"DynamicQuantizeLSTM": 1}
    assert agreement_db(before, after, ctx) > 25


def test_gru_becomes_integer_products_and_stays_close():
    nodes = [helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=8, name="gru")]
    net = model(nodes, [weight("w", 1, 24, 4), weight("r", 1, 24, 8)], ["T", "N", 4])
    ctx = context(3, 1, 4)
    after, numbers = quantized(net, ctx)
    assert numbers["operators"]["int8"]
    assert "GRU" not in numbers["operators"]["float"]
    assert agreement_db(net, after, ctx) > 30


def test_a_plain_rnn_stays_float_and_a_graph_of_nothing_else_is_refused():
    nodes = [helper.make_node("RNN", ["x", "w", "r"], ["y"], hidden_size=8, name="rnn")]
    net = model(nodes, [weight("w", 1, 8, 4), weight("r", 1, 8, 8)], ["T", "N", 4])
    with pytest.raises(PassError, match="Nothing was quantized"):
        quantized(net, context(3, 1, 4))


def test_a_gru_that_cannot_be_rewritten_says_why_it_stays_float():
    gru = {"hidden_size": 8, "clip": 3.0, "name": "gru"}
    nodes = [
        helper.make_node("GRU", ["x", "w", "r"], ["h"], **gru),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="product"),
    ]
    weights = [weight("w", 1, 24, 4), weight("r", 1, 24, 8), weight("v", 8, 8)]
    _, numbers = quantized(model(nodes, weights, ["T", "N", 4]), context(3, 1, 4))
    (reason,) = numbers["operators"]["reasons"]["GRU"]
    assert "clip" in reason


def test_static_mode_without_calibration_says_so():
    ctx = Context(context(1, 3, 8, 8).check_feeds)
    with pytest.raises(PassError, match="calibration"):
        quantized(conv_net(), ctx, mode="static")


def test_quantizing_twice_gives_the_same_bytes():
    net, ctx = conv_net(), context(1, 3, 8, 8)
    first, second = (quantized(net, ctx)[0].payload.SerializeToString() for _ in range(2))
    assert first == second


def test_fold_merges_batch_norm_and_keeps_the_numbers():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "s", "t", "m", "v"], ["y"], name="bn"),
    ]
    positive = numpy_helper.from_array(np.abs(RNG.standard_normal(4)).astype(np.float32) + 0.5, "v")
    tables = [weight("w", 4, 3, 3, 3), weight("s", 4), weight("t", 4), weight("m", 4), positive]
    before = model(nodes, tables, ["N", 3, 8, 8], opset=13)
    ctx = context(1, 3, 8, 8)
    after = FoldPass().run(before, FoldConfig(), ctx)
    assert [n.op_type for n in after.payload.graph.node] == ["Conv"]
    assert after.history[-1].numbers["given_up"] == {}
    assert agreement_db(before, after, ctx) > 100


def test_a_float16_transposed_convolution_is_refused_rather_than_called_int8():
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up")]
    half = numpy_helper.from_array(RNG.standard_normal((8, 32, 4, 4)).astype(np.float16), "w")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 8, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
        [half],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = ({"x": RNG.standard_normal((1, 8, 4, 4)).astype(np.float16)},)
    with pytest.raises(PassError, match="Nothing was quantized"):
        quantized(Artifact("onnx", made), Context(feeds, feeds))


def test_a_weight_that_another_graph_reads_too_is_kept():
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["c"], name="up"),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0, name="sum"),
        helper.make_node("Greater", ["s", "zero"], ["is_positive"], name="greater"),
    ]
    branches = {}
    for name, op in (("then_branch", "ReduceMax"), ("else_branch", "ReduceMin")):
        body = helper.make_graph(
            [helper.make_node(op, ["w"], [f"{op}_out"], keepdims=0)],
            name,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, [])],
        )
        branches[name] = body
    nodes.append(helper.make_node("If", ["is_positive"], ["scale"], name="if", **branches))
    nodes.append(helper.make_node("Mul", ["c", "scale"], ["y"], name="mul"))
    zero = numpy_helper.from_array(np.float32(0), "zero")
    before = model(nodes, [weight("w", 8, 32, 4, 4), zero], ["N", 8, 4, 4])
    # As INT8 beside the floats that If reads, it would make the file larger.
    with pytest.raises(PassError, match="Nothing was quantized"):
        quantized(before, context(1, 8, 4, 4))


def test_a_graph_that_is_quantized_already_is_refused():
    ctx = context(1, 3, 8, 8)
    once, _ = quantized(conv_net(), ctx)
    with pytest.raises(PassError, match="quantized already"):
        quantized(once, ctx)


def test_fold_does_not_store_large_computed_constants():
    shape = numpy_helper.from_array(np.array([1, 3, 1000, 1000], np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"], name="zeros"),
        helper.make_node("Add", ["x", "zeros"], ["y"], name="add"),
    ]
    before = model(nodes, [shape], ["N", 3, 1, 1])
    after = FoldPass().run(before, FoldConfig(), context(1, 3, 1, 1))
    assert after.payload.ByteSize() < 10_000


def test_a_relu_that_an_inner_graph_reads_stays():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,3,8,8] x, bool b) => (float[1,4,8,8] y) {
      c = Conv<pads = [1, 1, 1, 1]>(x, w)  r = Relu(c)  d = Conv<pads = [1, 1, 1, 1]>(r, v)
      y = If (b) <then_branch = t () => (float[1,4,8,8] p) { p = Add(r, d) },
                  else_branch = e () => (float[1,4,8,8] q) { q = Identity(r) }> }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, width in (("w", 3), ("v", 4)):
        values = rng.normal(size=(4, width, 3, 3)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    feeds = [
        {"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32), "b": np.array(bit)}
        for bit in (True, False)
    ]
    context = Context(tuple(feeds), tuple(feeds))
    made = QuantizePass().run(Artifact("onnx", model), QuantizeConfig(mode="static"), context)
    wanted = [OrtSession(Artifact("onnx", model), threads=1).run(each) for each in feeds]
    found = [OrtSession(made, threads=1).run(each) for each in feeds]
    assert lowest_agreement_db(wanted, found) > 20.0
