import itertools

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.passes.draft import Draft
from aigc_compress.passes.recurrent import quantize_recurrent
from aigc_compress.passes.recurrent.products import Products
from aigc_compress.passes.recurrent.replace import replace_recurrent

RNG = np.random.default_rng(0)
INPUT, HIDDEN = 5, 16
FLOAT_PRODUCTS = Products(is_integer=False)
DIRECTIONS = ("forward", "reverse", "bidirectional")


def uniform(*shape, scale=0.5):
    return RNG.uniform(-scale, scale, shape).astype(np.float32)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def layer_weights(gates, directions, *, bias=True):
    """Weights by input position; a scale of its own per row tests per-channel scales."""
    rows = np.exp(RNG.uniform(-2, 0, (directions, gates * HIDDEN, 1))).astype(np.float32)
    arrays = {
        1: rows * uniform(directions, gates * HIDDEN, INPUT),
        2: rows * uniform(directions, gates * HIDDEN, HIDDEN),
    }
    return arrays | ({3: uniform(directions, 2 * gates * HIDDEN)} if bias else {})


def layer_node(op, weights, *, states=(), **attributes):
    """Return the node and initializers; `states` are names of initial states."""
    inputs = ["x", *(f"p{i}" if i in weights else "" for i in range(1, 5)), *states]
    if 7 in weights:
        inputs = [*inputs, *[""] * (7 - len(inputs)), "p7"]
    outputs = ["y", "y_h", "y_c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, inputs, outputs, hidden_size=HIDDEN, name="layer", **attributes)
    return node, [numpy_helper.from_array(array, f"p{i}") for i, array in weights.items()]


def make_model(op, weights, *, states=(), opset=17, steps="T", **attributes):
    node, initializers = layer_node(op, weights, states=states, **attributes)
    directions = weights[1].shape[0]
    inputs = [value("x", [steps, "N", INPUT])]
    inputs += [value(name, [directions, "N", HIDDEN]) for name in states]
    outputs = [
        value("y", [None] * 4),
        *(value(name, [directions, "N", HIDDEN]) for name in node.output[1:]),
    ]
    return wrap([node], inputs, outputs, initializers, opset)


def wrap(nodes, inputs, outputs, initializers=(), opset=17):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model, feeds):
    onnx.checker.check_model(model)
    outputs = OrtSession(Artifact("onnx", model), threads=1).run(feeds)
    return [outputs[each.name] for each in model.graph.output]


def feeds_for(steps, batch, states=(), directions=1):
    dense = RNG.standard_normal((steps, batch, INPUT)).astype(np.float32)
    return {"x": dense} | {name: np.tanh(2 * uniform(directions, batch, HIDDEN)) for name in states}


def operators(graph):
    found = [node.op_type for node in graph.node]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += operators(attribute.g)
    return found


def relative_error(wanted, found):
    return np.linalg.norm(wanted - found) / np.linalg.norm(wanted)


# A second, plainer way: the arithmetic of integer products and of both cells in numpy.


def integer_product(x, weight, limit=127, *, per_channel=True):
    """x (M, K) with one uint8 range times int8 weight (K, N), as 64-bit integers."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / np.float32(255))
    zero = np.rint(-low / scale)
    q = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - int(zero)
    w_scale = np.abs(weight).max(axis=0 if per_channel else None) / np.float32(limit)
    w = np.clip(np.rint(weight / w_scale), -limit, limit).astype(np.int64)
    return (q @ w) * (scale * w_scale)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru_in_numpy(x, w, r, b, h, *, is_linear_first):
    """One direction: x (T, N, I), weights as in ONNX; return Y (T, N, H)."""
    wb, rb = b[: 3 * HIDDEN], b[3 * HIDDEN :]
    rows = integer_product(x.reshape(-1, INPUT), w.T).reshape(*x.shape[:2], -1) + wb
    cut, outputs = 2 * HIDDEN, []
    for row in rows:
        z, reset = np.split(sigmoid(row[:, :cut] + integer_product(h, r[:cut].T) + rb[:cut]), 2, 1)
        if is_linear_first:
            inner = reset * (integer_product(h, r[cut:].T) + rb[cut:])
        else:
            inner = integer_product(reset * h, r[cut:].T) + rb[cut:]
        h = ((1 - z) * np.tanh(row[:, cut:] + inner) + z * h).astype(np.float32)
        outputs.append(h)
    return np.stack(outputs)


def lstm_in_numpy(x, w, r, b, p, **settings):
    """One direction from a zero state, gates i, o, f, c: return Y (T, N, H)."""
    rows = integer_product(x.reshape(-1, INPUT), w.T, **settings).reshape(*x.shape[:2], -1)
    h = c = np.zeros((x.shape[1], HIDDEN), np.float32)
    p_i, p_o, p_f = np.split(p, 3)
    outputs = []
    for row in rows + b[: 4 * HIDDEN] + b[4 * HIDDEN :]:
        product = integer_product(h, r.T, **settings) if h.any() else 0
        i, o, f, new = np.split(row + product, 4, axis=1)
        c = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * np.tanh(new)
        h = (sigmoid(o + p_o * c) * np.tanh(c)).astype(np.float32)
        outputs.append(h)
    return np.stack(outputs)


# Products


def extreme(value_scale):
    """Dense activations in (0, 1] times weights of full size: what u8 x s8 may saturate on."""
    x = np.ones((3, 64), np.float32)
    x[1] = RNG.uniform(0.9, 1, 64)
    signs = np.where(RNG.uniform(size=(64, 8)) < 0.9, 1, -1)
    return x, (signs * value_scale).astype(np.float32)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (uniform(3, 7, scale=2), uniform(7, 8)),
        (uniform(3, 7, scale=2), uniform(7, 8) * np.logspace(-6, 0, 8, dtype=np.float32)),
        extreme(np.linspace(0.5, 1, 8)),
    ],
)
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_product_of_seven_bit_weights_equals_integer_arithmetic_in_numpy(x, weight, per_channel):
    bias = uniform(8)
    draft = Draft("d", 17)
    kind = Products(per_channel=per_channel, reduce_range=True)
    draft.rename(kind.multiply(draft, "x", weight, bias=bias, name="w"), "y")
    inputs, outputs = [value("x", ["M", len(weight)])], [value("y", ["M", 8])]
    model = wrap(draft.nodes, inputs, outputs, draft.constants)
    model.opset_import.add(domain="com.microsoft", version=1)
    wanted = integer_product(x, weight, 64, per_channel=per_channel) + bias
    np.testing.assert_allclose(run(model, {"x": x})[0], wanted, rtol=1e-5, atol=1e-6)


# GRU


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("linear_before_reset", [0, 1])
@pytest.mark.parametrize(("bias", "initial"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("steps", ["T", 1])
def test_gru_with_float_products_equals_onnx_runtimes_gru(
    direction, linear_before_reset, bias, initial, steps
):
    directions = 2 if direction == "bidirectional" else 1
    states = ("h0",) if initial else ()
    before = make_model(
        "GRU",
        layer_weights(3, directions, bias=bias),
        states=states,
        steps=steps,
        direction=direction,
        linear_before_reset=linear_before_reset,
    )
    after, told = replace_recurrent(before, FLOAT_PRODUCTS)
    assert told == {"layer": {"operator": "GRU", "form": "step" if steps == 1 else "scan"}}
    assert "GRU" not in operators(after.graph)
    lengths = (1,) if steps == 1 else (1, 2, 7)
    for length, batch in itertools.product(lengths, (1, 3)):
        feeds = feeds_for(length, batch, states, directions)
        for wanted, found in zip(run(before, feeds), run(after, feeds), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("is_bidirectional", [False, True])
def test_gru_with_float_products_equals_torch(is_bidirectional):
    module = torch.nn.GRU(INPUT, HIDDEN, bidirectional=is_bidirectional)
    directions = 1 + is_bidirectional
    tables = {name: value.detach().numpy() for name, value in module.named_parameters()}
    suffixes = ["", "_reverse"][:directions]

    def stacked(kind):
        """torch's gates are r, z, n; ONNX's z, r, n."""
        parts = [np.split(tables[f"{kind}_l0{suffix}"], 3) for suffix in suffixes]
        return np.stack([np.concatenate((z, r, n)) for r, z, n in parts])

    biases = np.concatenate((stacked("bias_ih"), stacked("bias_hh")), axis=1)
    before = make_model(
        "GRU",
        {1: stacked("weight_ih"), 2: stacked("weight_hh"), 3: biases},
        direction="bidirectional" if is_bidirectional else "forward",
        linear_before_reset=1,
    )
    after, _ = replace_recurrent(before, FLOAT_PRODUCTS)
    feeds = feeds_for(7, 3)
    y, y_h = run(after, feeds)
    with torch.no_grad():
        wanted, wanted_h = module(torch.from_numpy(feeds["x"]))
    wanted = wanted.numpy().reshape(7, 3, directions, HIDDEN).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    np.testing.assert_allclose(y_h, wanted_h.numpy(), atol=1e-5)


@pytest.mark.parametrize("linear_before_reset", [0, 1])
@pytest.mark.parametrize("steps", ["T", 1])
def test_integer_gru_equals_integer_arithmetic_in_numpy(linear_before_reset, steps):
    weights = layer_weights(3, 1)
    before = make_model(
        "GRU", weights, states=("h0",), steps=steps, linear_before_reset=linear_before_reset
    )
    after, _ = quantize_recurrent(before)
    feeds = feeds_for(1 if steps == 1 else 7, 3, ("h0",))
    y, y_h = run(after, feeds)
    wanted = gru_in_numpy(
        feeds["x"],
        *(weights[i][0] for i in (1, 2, 3)),
        feeds["h0"][0],
        is_linear_first=linear_before_reset,
    )
    # Float32 against float64 between the products; one activation rounded otherwise is 1e-3.
    np.testing.assert_allclose(y[:, 0], wanted, atol=2e-5)
    np.testing.assert_allclose(y_h[0], wanted[-1], atol=2e-5)
    assert operators(after.graph).count("DynamicQuantizeMatMul") == 3 - linear_before_reset


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("settings", [{}, {"per_channel": False}, {"reduce_range": True}])
def test_integer_layers_stay_close_to_float_on_dense_activations(op, direction, settings):
    directions = 2 if direction == "bidirectional" else 1
    weights = layer_weights({"GRU": 3, "LSTM": 4}[op], directions)
    before = make_model(op, weights, direction=direction)
    after, _ = quantize_recurrent(before, **settings)
    feeds = feeds_for(7, 3)
    for wanted, found in zip(run(before, feeds), run(after, feeds), strict=True):
        assert found.shape == wanted.shape
        # 8 bits over 3 sigma: about 1 % per product; half the weight levels at most double it.
        assert 1e-5 < relative_error(wanted, found) < 0.04


def test_dynamic_time_and_batch_axes_stay_dynamic():
    before = make_model("GRU", layer_weights(3, 1))
    after, _ = quantize_recurrent(before)
    assert after.graph.input == before.graph.input
    assert after.graph.output == before.graph.output
    for steps, batch in ((1, 1), (4, 2), (9, 5)):
        y, y_h = run(after, feeds_for(steps, batch))
        assert y.shape == (steps, 1, batch, HIDDEN)
        assert y_h.shape == (1, batch, HIDDEN)


def test_a_length_frozen_in_declared_shapes_further_in_is_not_believed():
    node, initializers = layer_node("GRU", layer_weights(3, 1))
    node.input[0] = "same"
    nodes = [helper.make_node("Identity", ["x"], ["same"]), node]
    before = wrap(nodes, [value("x", ["T", "N", INPUT])], [value("y", [None] * 4)], initializers)
    before.graph.value_info.append(value("same", [1, 1, INPUT]))
    after, told = replace_recurrent(before, FLOAT_PRODUCTS)
    assert told["layer"]["form"] == "scan"
    del before.graph.value_info[:], after.graph.value_info[:]
    feeds = feeds_for(6, 2)
    np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], atol=1e-5)


@pytest.mark.parametrize("kept", ["y", "y_h"])
def test_a_gru_with_one_output_left_out_is_rewritten(kept):
    node, initializers = layer_node("GRU", layer_weights(3, 1))
    node.output[:] = [name if name == kept else "" for name in node.output]
    before = wrap(
        [node],
        [value("x", ["T", "N", INPUT])],
        [value(kept, [None] * (4 if kept == "y" else 3))],
        initializers,
    )
    after, _ = replace_recurrent(before, FLOAT_PRODUCTS)
    feeds = feeds_for(3, 2)
    np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], atol=1e-5)


def test_opset_11_is_written_in_its_own_spelling():
    before = make_model("GRU", layer_weights(3, 2), opset=11, direction="bidirectional")
    after, _ = replace_recurrent(before, FLOAT_PRODUCTS)
    feeds = feeds_for(3, 2)
    for wanted, found in zip(run(before, feeds), run(after, feeds), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_sequence_lens_that_equal_the_length_are_ignored():
    weights = layer_weights(3, 1) | {4: np.array([4, 4], np.int32)}
    before = make_model("GRU", weights, steps=4)
    after, told = replace_recurrent(before, FLOAT_PRODUCTS)
    assert told["layer"]["form"] == "scan"
    feeds = feeds_for(4, 2)
    np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], atol=1e-5)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_weight_of_zeros_gives_the_same_output_as_float(per_channel):
    weights = layer_weights(3, 1)
    weights[1][:] = 0
    weights[2][:] = 0
    before = make_model("GRU", weights)
    after, _ = quantize_recurrent(before, per_channel=per_channel)
    feeds = feeds_for(3, 2)
    np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], atol=1e-6)


# LSTM


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("has_peepholes", [False, True])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_integer_lstm_equals_integer_arithmetic_in_numpy(
    direction, has_peepholes, per_channel, reduce_range
):
    directions = 2 if direction == "bidirectional" else 1
    peepholes = uniform(directions, 3 * HIDDEN) * has_peepholes
    weights = layer_weights(4, directions) | ({7: peepholes} if has_peepholes else {})
    before = make_model("LSTM", weights, direction=direction)
    after, told = quantize_recurrent(before, per_channel=per_channel, reduce_range=reduce_range)
    assert told == {"layer": {"operator": "LSTM", "form": "DynamicQuantizeLSTM"}}
    x = feeds_for(5, 3)["x"]
    y = run(after, {"x": x})[0]
    for index in range(directions):
        is_reverse = index == 1 or direction == "reverse"
        order = slice(None, None, -1 if is_reverse else 1)
        wanted = lstm_in_numpy(
            x[order],
            *(weights[i][index] for i in (1, 2, 3)),
            peepholes[index],
            limit=64 if reduce_range else 127,
            per_channel=per_channel,
        )[order]
        # ONNX Runtime's own sigmoid and tanh differ from numpy's by up to 1e-6 a call.
        np.testing.assert_allclose(y[:, index], wanted, atol=5e-5)


def test_every_gate_row_of_an_integer_lstm_has_its_own_scale():
    weights = layer_weights(4, 2)
    after, _ = quantize_recurrent(make_model("LSTM", weights, direction="bidirectional"))
    tables = {each.name: numpy_helper.to_array(each) for each in after.graph.initializer}
    (node,) = after.graph.node
    for position, weight in ((1, weights[1]), (2, weights[2])):
        scale = tables[node.input[8 + 2 * (position - 1)]]
        np.testing.assert_allclose(scale, np.abs(weight).max(axis=2) / 127, rtol=1e-6)
        restored = tables[node.input[position]] * scale[:, None, :]
        half_steps = np.abs(restored.transpose(0, 2, 1) - weight) / scale[:, :, None]
        assert half_steps.max() <= 0.501


def test_initial_states_reach_the_integer_lstm():
    before = make_model("LSTM", layer_weights(4, 2), states=("h0", "c0"), direction="bidirectional")
    after, _ = quantize_recurrent(before)
    feeds = feeds_for(2, 3, ("h0", "c0"), 2)
    wanted, found = run(before, feeds), run(after, feeds)
    without = run(after, feeds | {"c0": np.zeros_like(feeds["c0"])})
    for index in range(3):
        assert relative_error(wanted[index], found[index]) < 0.03
        assert relative_error(wanted[index], without[index]) > 0.1


def test_clip_and_activations_of_an_lstm_are_kept():
    settings = {"clip": 0.3, "activations": ["HardSigmoid", "Tanh", "Tanh"]}
    before = make_model("LSTM", layer_weights(4, 1), **settings)
    plain = make_model("LSTM", layer_weights(4, 1))
    after, _ = quantize_recurrent(before)
    feeds = feeds_for(5, 2)
    wanted = run(before, feeds)[0]
    assert relative_error(wanted, run(after, feeds)[0]) < 0.04
    assert relative_error(wanted, run(plain, feeds)[0]) > 0.1


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
def test_layers_in_both_branches_of_an_if_are_replaced_where_slices_make_their_weights(op):
    gates = {"GRU": 3, "LSTM": 4}[op]
    whole = uniform(2 * gates * HIDDEN, INPUT)
    recurrent = uniform(1, gates * HIDDEN, HIDDEN)
    branches, rows = {}, gates * HIDDEN
    for index, key in enumerate(("then_branch", "else_branch")):
        constants = {"starts": [index * rows], "ends": [(index + 1) * rows], "zero": [0]}
        nodes = [
            helper.make_node(
                "Constant", [], [f"{name}{index}"], value=numpy_helper.from_array(np.array(numbers))
            )
            for name, numbers in constants.items()
        ]
        ends = [f"{name}{index}" for name in ("starts", "ends", "zero")]
        nodes += [
            helper.make_node("Slice", ["whole", *ends], [f"part{index}"]),
            helper.make_node("Unsqueeze", [f"part{index}", f"zero{index}"], [f"w{index}"]),
            helper.make_node(
                op, ["x", f"w{index}", "r"], [f"y{index}"], hidden_size=HIDDEN, name=f"layer{index}"
            ),
        ]
        branches[key] = helper.make_graph(nodes, key, [], [value(f"y{index}", [None] * 4)])
    choose = helper.make_node("If", ["is_first"], ["y"], **branches)
    inputs = [value("x", ["T", "N", INPUT]), value("is_first", [], TensorProto.BOOL)]
    initializers = [
        numpy_helper.from_array(whole, "whole"),
        numpy_helper.from_array(recurrent, "r"),
    ]
    before = wrap([choose], inputs, [value("y", [None] * 4)], initializers)
    after, told = quantize_recurrent(before)
    assert set(told) == {"layer0", "layer1"}
    assert op not in operators(after.graph)
    assert "Slice" not in operators(after.graph)
    assert [each.name for each in after.graph.initializer] == []
    for is_first in (True, False):
        feeds = feeds_for(4, 2) | {"is_first": np.array(is_first)}
        assert relative_error(run(before, feeds)[0], run(after, feeds)[0]) < 0.03


@pytest.mark.parametrize("is_made", [False, True])
def test_a_float_weight_that_something_else_reads_is_kept(is_made):
    node, initializers = layer_node("LSTM", layer_weights(4, 1))
    nodes = [node, helper.make_node("Identity", ["p2"], ["copy"])]
    if is_made:
        initializers[1].name = "raw"
        nodes.insert(0, helper.make_node("Transpose", ["raw"], ["p2"], perm=[0, 1, 2]))
    outputs = [value("y", [None] * 4), value("copy", [None] * 3)]
    before = wrap(nodes, [value("x", ["T", "N", INPUT])], outputs, initializers)
    after, told = quantize_recurrent(before)
    assert told["layer"]["form"] == "DynamicQuantizeLSTM"
    names = {each.name for each in after.graph.initializer}
    assert initializers[1].name in names
    assert "p1" not in names
    feeds = feeds_for(2, 1)
    np.testing.assert_array_equal(run(after, feeds)[1], run(before, feeds)[1])


# What stays float


def reason(model):
    after, told = quantize_recurrent(model)
    assert after == model
    return told["layer"]["float"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clip": 1.0}, "clip"),
        ({"activations": ["Relu", "Tanh"]}, "relu"),
        ({"layout": 1}, "layout 1"),
    ],
)
def test_a_gru_with_unusual_settings_stays_float_and_says_why(settings, words):
    assert words in reason(make_model("GRU", layer_weights(3, 1), **settings))


def test_default_activations_that_are_spelled_out_are_accepted():
    spelled = {"activations": ["Sigmoid", "Tanh"] * 2, "direction": "bidirectional"}
    _, told = quantize_recurrent(make_model("GRU", layer_weights(3, 2), **spelled))
    assert told["layer"]["form"] == "scan"


def test_a_batch_first_lstm_stays_float_and_says_why():
    assert "layout 1" in reason(make_model("LSTM", layer_weights(4, 1), layout=1))


@pytest.mark.parametrize("lengths", [[4, 3], [4, 4]])
def test_a_gru_whose_sequences_may_be_shorter_stays_float_and_says_why(lengths):
    weights = layer_weights(3, 1) | {4: np.array(lengths, np.int32)}
    steps = 4 if lengths == [4, 3] else "T"
    assert "sequence_lens" in reason(make_model("GRU", weights, steps=steps))


@pytest.mark.parametrize(("op", "position"), [("GRU", 1), ("LSTM", 2), ("GRU", 3)])
def test_computed_weights_stay_float_and_say_why(op, position):
    weights = layer_weights({"GRU": 3, "LSTM": 4}[op], 1)
    model = make_model(op, weights)
    model.graph.input.append(value(f"p{position}", weights[position].shape))
    assert "computed at run time" in reason(model)  # an initializer that a feed may override


def test_a_float16_layer_stays_float_and_says_why():
    weights = {i: array.astype(np.float16) for i, array in layer_weights(4, 1).items()}
    assert "float16" in reason(make_model("LSTM", weights))


def test_a_plain_rnn_stays_float_and_says_why():
    assert "RNN" in reason(make_model("RNN", layer_weights(1, 1)))


def test_layers_of_the_same_name_are_told_apart():
    weights = layer_weights(3, 1)
    node, initializers = layer_node("GRU", weights)
    second = onnx.NodeProto()
    second.CopyFrom(node)
    second.output[:] = ["z", ""]
    outputs = [value("y", [None] * 4), value("z", [None] * 4)]
    model = wrap([node, second], [value("x", ["T", "N", INPUT])], outputs, initializers)
    _, told = quantize_recurrent(model)
    assert set(told) == {"layer", "layer (2)"}


def test_a_model_without_recurrent_layers_is_handed_back_equal():
    model = wrap([helper.make_node("Relu", ["x"], ["y"])], [value("x", [2])], [value("y", [2])])
    assert quantize_recurrent(model) == (model, {})


def test_quantizing_twice_gives_the_same_bytes_and_leaves_the_input():
    model = make_model("GRU", layer_weights(3, 1))
    before = model.SerializeToString()
    first, second = (quantize_recurrent(model)[0].SerializeToString() for _ in range(2))
    assert first == second
    assert model.SerializeToString() == before
