"""Weights whose products fit into int16 two by two, wherever the model runs."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import sqnr_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.quantize.pairs import narrow_pairs
from aigc_compress.passes.quantize.static import quantize_static
from aigc_compress.passes.saturation import find_saturation

REDUCED = QuantizeConfig(mode="static", reduce_range=True)
LAYERS = {
    "plain": ("Conv", (16, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
    "odd channels": ("Conv", (8, 7, 3, 3), {"pads": [1, 1, 1, 1]}),
    "grouped": ("Conv", (8, 6, 3, 3), {"group": 2}),
    "depthwise": ("Conv", (8, 1, 3, 3), {"group": 8}),
    "one tap": ("Conv", (32, 16, 1, 1), {}),
    "one dimension": ("Conv", (8, 6, 5), {}),
    "MatMul": ("MatMul", (32, 24), {}),
    "Gemm": ("Gemm", (24, 32), {"transB": 1}),
}


def layer(kind):
    """Return a graph of one layer and feeds that use all of uint8."""
    op, shape, attributes = LAYERS[kind]
    rng = np.random.default_rng(len(kind))
    weights = rng.normal(size=shape).astype(np.float32)
    inputs = shape[1] * attributes.get("group", 1) if op == "Conv" else 32
    given = (2, inputs, *[8] * (len(shape) - 2)) if op == "Conv" else (5, inputs)
    node = helper.make_node(op, ["x", "w"], ["y"], name="layer", **attributes)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [info("x", TensorProto.FLOAT, given)],
        [info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = tuple({"x": rng.uniform(0, 1, given).astype(np.float32)} for _ in range(4))
    return model, feeds


def table_of(model, name):
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def weights_of(model):
    return table_of(model, "w_quantized")


@pytest.mark.parametrize("kind", LAYERS)
def test_integers_are_those_of_arithmetic_without_saturation(kind):
    model, feeds = layer(kind)
    quantized, _ = quantize_static(model, REDUCED, Context(feeds, feeds))
    assert not any(each.is_possible for each in find_saturation(quantized))
    session = OrtSession(Artifact("onnx", quantized), threads=1)
    scale, zero = table_of(quantized, "y_scale"), table_of(quantized, "y_zero_point")
    for each in feeds:
        found = np.rint(session.run(each)["y"] / scale) + zero
        wanted = np.clip(np.rint(products(kind, quantized, each["x"]) / scale) + zero, 0, 255)
        assert (found != wanted).mean() < 0.01  # ties may be broken otherwise, in float32
        assert np.abs(found - wanted).max() <= 1


def products(kind, quantized, x):
    """Return what integers sum up to, exactly, times their scales, in float64."""
    op, _, attributes = LAYERS[kind]
    scale, zero = (table_of(quantized, f"x_{part}") for part in ("scale", "zero_point"))
    integers = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    weights = torch.from_numpy(weights_of(quantized).astype(np.float64))
    steps, rows = table_of(quantized, "w_scale"), torch.from_numpy(integers.astype(np.float64))
    if op != "Conv":
        product = rows @ (weights.T if attributes.get("transB") else weights)
    else:
        convolve = torch.nn.functional.conv1d if weights.ndim == 3 else torch.nn.functional.conv2d
        padding, groups = attributes.get("pads", [0])[0], attributes.get("group", 1)
        product = convolve(rows, weights, padding=padding, groups=groups)
        steps = steps.reshape(-1, *[1] * (weights.ndim - 2))
    return product.numpy() * scale * steps


@pytest.mark.parametrize("kind", [each for each in LAYERS if each != "depthwise"])
def test_weights_are_finer_than_with_seven_bits(kind):
    model, feeds = layer(kind)
    quantized, _ = quantize_static(model, REDUCED, Context(feeds, feeds))
    (exact,) = (numpy_helper.to_array(each) for each in model.graph.initializer)
    axis = 1 if kind == "MatMul" else 0
    others = tuple(place for place in range(exact.ndim) if place != axis)
    seven_bits = np.abs(exact).max(others, keepdims=True) / 64
    scale = table_of(quantized, "w_scale").reshape(seven_bits.shape)
    finer = sqnr_db(exact, weights_of(quantized) * scale)
    assert finer > sqnr_db(exact, np.rint(exact / seven_bits) * seven_bits) + 2  # of 6 dB


def test_depthwise_weights_keep_all_bits():
    model, feeds = layer("depthwise")
    quantized, _ = quantize_static(model, REDUCED, Context(feeds, feeds))
    assert (np.abs(weights_of(quantized).astype(int)).reshape(8, -1).max(1) == 127).all()


def test_pairs_that_rounding_made_too_large_are_brought_back():
    model, feeds = layer("odd channels")
    quantized, _ = quantize_static(model, REDUCED, Context(feeds, feeds))
    table = next(each for each in quantized.graph.initializer if each.name == "w_quantized")
    grown = weights_of(quantized).astype(int)
    grown += np.sign(grown) * (np.abs(grown) < 127)
    table.CopyFrom(numpy_helper.from_array(grown.astype(np.int8), "w_quantized"))
    assert any(each.is_possible for each in find_saturation(quantized))
    narrow_pairs(quantized)
    assert not any(each.is_possible for each in find_saturation(quantized))
    assert np.abs(weights_of(quantized).astype(int) - grown).max() <= 3
