"""What stays float: weights between integers, shared constants, what infinities touch."""

from collections import Counter

import numpy as np
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession, optimized
from aigc_compress.machine import machine_scheme
from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.quantize.static import quantize_static

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)
{ a = Conv<pads = [1, 1, 1, 1]>(x, w1)  ra = Relu(a)
  b = Conv<pads = [1, 1, 1, 1]>(ra, w2)  %s
  y = Conv<pads = [1, 1, 1, 1]>(%s, w3) }"""
BEHIND = {"nothing": "", "Relu": "rb = Relu(b)", "Clip": "rb = Clip(b, low)"}


def chain(behind, spread=1000.0):
    """Three convolutions; the channels of the second differ that many times in size."""
    model = parser.parse_model(CHAIN % (BEHIND[behind], "rb" if BEHIND[behind] else "b"))
    rng = np.random.default_rng(0)
    for name in ("w1", "w2", "w3"):
        values = rng.normal(size=(4, 4, 3, 3)).astype(np.float32)
        if name == "w2":
            values *= np.float32([spread, 1, 1, 1]).reshape(4, 1, 1, 1)
        if name == "w3":
            values *= np.float32([1 / spread, 1, 1, 1]).reshape(1, 4, 1, 1)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.0), "low"))
    for place, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{place}"
    return model


@pytest.mark.parametrize("behind", BEHIND)
def test_a_float_convolution_between_integers_keeps_its_weights(behind):
    model = chain(behind)
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    others = [node.name for node in model.graph.node if node.name != convolutions[1]]
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(size=(1, 4, 8, 8)).astype(np.float32)} for _ in range(3)]
    settings = {**machine_scheme().settings, "mode": "static", "only": tuple(others)}
    context = Context(tuple(feeds), tuple(feeds))
    quantized, told = quantize_static(model, QuantizeConfig(**settings), context)
    assert told["static"]["shielded"] == [convolutions[1]]
    runs = [node.op_type for node in optimized(quantized).graph.node]
    assert runs.count("QLinearConv") == 2
    assert runs.count("Conv") + runs.count("FusedConv") == 1
    as_written = [run_as_written(quantized, each) for each in feeds]
    session = OrtSession(Artifact("onnx", quantized), threads=1)
    assert lowest_agreement_db(as_written, [session.run(each) for each in feeds]) > 40


def run_as_written(model, feeds):
    """Return the outputs without ONNX Runtime's optimizations, which round nothing then."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return {"y": session.run(["y"], feeds)[0]}


def test_a_float_layer_that_shares_its_weights_with_an_integer_one_keeps_them():
    model = chain("Relu")
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.input[1] = "w2"
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    others = tuple(node.name for node in model.graph.node if node.name != convolutions[1])
    feeds = ({"x": np.random.default_rng(2).normal(size=(1, 4, 8, 8)).astype(np.float32)},)
    settings = {**machine_scheme().settings, "mode": "static", "only": others}
    quantized, _ = quantize_static(model, QuantizeConfig(**settings), Context(feeds, feeds))
    weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    kept = {each.name: numpy_helper.to_array(each) for each in quantized.graph.initializer}
    middle = next(node for node in quantized.graph.node if node.name == convolutions[1])
    assert np.array_equal(kept[middle.input[1]], weights["w2"])


def test_layers_may_share_a_bias_whatever_other_tensors_are_called():
    model = chain("nothing", spread=1.0)
    for place, node in enumerate(model.graph.node):
        if node.op_type == "Conv":
            node.input.append("bias")
        node.output[0] = {0: "bias0"}.get(place, node.output[0])
    model.graph.node[1].input[0] = "bias0"
    bias = np.random.default_rng(3).normal(size=4).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    feeds = ({"x": np.random.default_rng(2).normal(size=(1, 4, 8, 8)).astype(np.float32)},)
    settings = {**machine_scheme().settings, "mode": "static"}
    quantized, _ = quantize_static(model, QuantizeConfig(**settings), Context(feeds, feeds))
    runs = [
        OrtSession(Artifact("onnx", each), threads=1).run(feeds[0]) for each in (model, quantized)
    ]
    assert lowest_agreement_db(runs[:1], runs[1:]) > 10


MASKED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[4, 16] x) => (float[4, 16] y)
{ q = MatMul (x, w)  t = Transpose <perm = [1, 0]> (x)  a = MatMul (q, t)
  b = Add (a, mask)  p = Softmax <axis = 1> (b)  o = MatMul (p, x)  y = MatMul (o, v) }"""


def test_what_a_mask_of_infinities_touches_stays_float_and_nothing_else():
    model, rng = parser.parse_model(MASKED), np.random.default_rng(0)
    tables = {name: rng.normal(size=(16, 16)).astype(np.float32) / 4 for name in "wv"}
    tables["mask"] = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    for name, table in tables.items():
        model.graph.initializer.append(numpy_helper.from_array(table, name))
    feeds = tuple({"x": rng.normal(size=(4, 16)).astype(np.float32)} for _ in range(4))
    settings = {**machine_scheme().settings, "mode": "static"}
    quantized, told = quantize_static(model, QuantizeConfig(**settings), Context(feeds, feeds))
    assert told["static"]["unbounded"] == ["b"]
    runs = Counter(node.op_type for node in optimized(quantized).graph.node)
    assert runs["QLinearMatMul"] + runs["MatMulIntegerToFloat"] == 4
    assert runs["Softmax"] == 1
    sessions = [OrtSession(Artifact("onnx", each), threads=1) for each in (model, quantized)]
    wanted, found = ([session.run(each) for each in feeds] for session in sessions)
    assert lowest_agreement_db(wanted, found) > 25
