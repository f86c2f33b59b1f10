"""Recurrent layers of any kind: products, closeness, branches, and what stays on floats."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from recurrent_graphs import (
    DIRECTIONS,
    HIDDEN,
    INPUT,
    RNG,
    SAFE,
    feeds_for,
    integer_product,
    layer_node,
    layer_weights,
    make_model,
    operators,
    relative_error,
    run,
    uniform,
    value,
    wrap,
)

from aigc_compress.passes.draft import Draft
from aigc_compress.passes.recurrent import quantize_recurrent
from aigc_compress.passes.recurrent.products import Products


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


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("settings", [{}, {"per_channel": False}, {"reduce_range": True}])
def test_integer_layers_stay_close_to_float_on_dense_activations(op, direction, settings):
    directions = 2 if direction == "bidirectional" else 1
    weights = layer_weights({"GRU": 3, "LSTM": 4}[op], directions)
    before = make_model(op, weights, direction=direction)
    after, _ = quantize_recurrent(before, **(SAFE | settings))
    feeds = feeds_for(7, 3)
    for wanted, found in zip(run(before, feeds), run(after, feeds), strict=True):
        assert found.shape == wanted.shape
        # 8 bits over 3 sigma: about 1 % per product; half the weight levels at most double it.
        assert 1e-5 < relative_error(wanted, found) < 0.04


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
    after, told = quantize_recurrent(before, **SAFE)
    assert set(told) == {"layer0", "layer1"}
    assert op not in operators(after.graph)
    assert "Slice" not in operators(after.graph)
    assert [each.name for each in after.graph.initializer] == []
    for is_first in (True, False):
        feeds = feeds_for(4, 2) | {"is_first": np.array(is_first)}
        assert relative_error(run(before, feeds)[0], run(after, feeds)[0]) < 0.03


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
