"""LSTM on the integer kernel of ONNX Runtime."""

import numpy as np
import pytest
from conftest import SATURATES
from onnx import helper, numpy_helper
from recurrent_graphs import (
    DIRECTIONS,
    HIDDEN,
    INPUT,
    SAFE,
    feeds_for,
    integer_product,
    layer_node,
    layer_weights,
    make_model,
    relative_error,
    run,
    sigmoid,
    uniform,
    value,
    wrap,
)

from aigc_compress.passes.recurrent import quantize_recurrent

needs_exact_sums = pytest.mark.skipif(
    SATURATES, reason="8-bit weights saturate on a processor without VNNI"
)


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


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("has_peepholes", [False, True])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("reduce_range", [True, pytest.param(False, marks=needs_exact_sums)])
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
    after, _ = quantize_recurrent(before, **SAFE)
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
    after, _ = quantize_recurrent(before, **SAFE)
    feeds = feeds_for(5, 2)
    wanted = run(before, feeds)[0]
    assert relative_error(wanted, run(after, feeds)[0]) < 0.04
    assert relative_error(wanted, run(plain, feeds)[0]) > 0.1


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
