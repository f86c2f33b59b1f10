"""GRU, rewritten into products, on floats and on integers."""

import itertools

import numpy as np
import pytest
import torch
from onnx import helper
from recurrent_graphs import (
    DIRECTIONS,
    HIDDEN,
    INPUT,
    LIMIT,
    SAFE,
    feeds_for,
    integer_product,
    layer_node,
    layer_weights,
    make_model,
    operators,
    run,
    sigmoid,
    value,
    wrap,
)

from aigc_compress.passes.recurrent import quantize_recurrent
from aigc_compress.passes.recurrent.products import Products
from aigc_compress.passes.recurrent.replace import replace_recurrent

FLOAT_PRODUCTS = Products(is_integer=False)


def gru_in_numpy(x, w, r, b, h, *, is_linear_first):
    """One direction: x (T, N, I), weights as in ONNX; return Y (T, N, H)."""
    wb, rb = b[: 3 * HIDDEN], b[3 * HIDDEN :]
    rows = integer_product(x.reshape(-1, INPUT), w.T, LIMIT).reshape(*x.shape[:2], -1) + wb
    cut, outputs = 2 * HIDDEN, []
    for row in rows:
        z, reset = np.split(
            sigmoid(row[:, :cut] + integer_product(h, r[:cut].T, LIMIT) + rb[:cut]), 2, 1
        )
        if is_linear_first:
            inner = reset * (integer_product(h, r[cut:].T, LIMIT) + rb[cut:])
        else:
            inner = integer_product(reset * h, r[cut:].T, LIMIT) + rb[cut:]
        h = ((1 - z) * np.tanh(row[:, cut:] + inner) + z * h).astype(np.float32)
        outputs.append(h)
    return np.stack(outputs)


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
    after, _ = quantize_recurrent(before, **SAFE)
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
