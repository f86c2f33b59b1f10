"""Graphs quantized for ONNX Runtime, back on floats: what the integers stood for, and no more."""

import numpy as np
import onnx
import pytest
import torch
from conftest import graph
from torch import nn

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError
from aigc_compress.passes import PASSES, Context, DequantizeConfig, ExportConfig
from aigc_compress.passes.tensorrt import lint
from aigc_compress.pipeline import run_passes

INTEGERS = ("Quantize", "Integer", "QLinear")


class Rectified(nn.Module):
    """Its quantizer drops the Relu: the integers' range begins at 0."""

    input_names, output_names = ("x",), ("y",)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 8, 3, 1, 1)

    def forward(self, x):
        return self.second(self.first(x).relu())


class Recurrent(nn.Module):
    input_names, output_names = ("x",), ("y",)

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(6, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.cell(x)[0])


def made(net, shape, mode):
    """Return the FP32 graph, the quantized one, that on floats again, and the context."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(n, *shape)).astype(np.float32)} for n in (2, 3, 4, 4)]
    context = Context(tuple(feeds[:2]), tuple(feeds[2:]))
    config = ExportConfig(dynamic_axes={"x": {0: "batch"}})
    steps = [("export", config), ("fold", PASSES["fold"].config())]
    floats = run_passes(Artifact("torch", net().eval()), steps, context)
    quantize = PASSES["quantize"]
    quantized = quantize.run(floats, quantize.config(mode=mode), context)
    again = run_passes(quantized, [("dequantize", DequantizeConfig())], context)
    return floats, quantized, again, context


def agreement(one, other, context):
    outputs = [
        [OrtSession(each, threads=1).run(feeds) for feeds in context.check_feeds]
        for each in (one, other)
    ]
    return lowest_agreement_db(*outputs)


@pytest.mark.parametrize(
    ("net", "shape", "mode"),
    [(Rectified, (3, 8, 8), "static"), (Recurrent, (7, 6), "dynamic")],
)
def test_no_integer_is_left_and_the_numbers_stay(net, shape, mode):
    floats, quantized, again, context = made(net, shape, mode)

    types = {node.op_type for node in again.payload.graph.node}
    assert lint(quantized.payload)
    assert not lint(again.payload)
    assert not [each for each in types if any(part in each for part in INTEGERS)]
    assert again.history[-1].numbers["sqnr_db"] > 30
    # Without the rounding of activations it is closer to FP32 than the integers are.
    assert agreement(floats, again, context) > agreement(floats, quantized, context)


def test_a_relu_that_the_quantizer_dropped_still_cuts_at_zero():
    _, quantized, again, _ = made(Rectified, (3, 8, 8), "static")

    assert "Relu" not in {node.op_type for node in quantized.payload.graph.node}
    stored = {each.name: each for each in again.payload.graph.initializer}
    clips = [node for node in again.payload.graph.node if node.op_type == "Clip"]
    least = [float(onnx.numpy_helper.to_array(stored[node.input[1]])) for node in clips]
    assert 0.0 in least


def test_per_channel_zero_points_and_scales_of_weights_are_undone_exactly():
    text = """net (float[batch,4] x) => (float[batch,2] y)
    <int8[4,2] w = {1,-2,3,-4,5,-6,7,-8}, float[2] s = {0.5, 2}, int8[2] z = {0, 0}>
    { f = DequantizeLinear<axis=1>(w, s, z)
      y = MatMul(x, f) }"""
    context = Context(({"x": np.eye(4, dtype=np.float32)},))
    again = run_passes(Artifact("onnx", graph(text)), [("dequantize", DequantizeConfig())], context)

    (found,) = OrtSession(again, threads=1).run(context.check_feeds[0]).values()
    np.testing.assert_array_equal(found, [[0.5, -4], [1.5, -8], [2.5, -12], [3.5, -16]])
    assert again.history[-1].numbers == {
        "gone": {"DequantizeLinear": 1},
        "sqnr_db": pytest.approx(200.0),
    }


def test_a_graph_on_floats_is_refused():
    text = "net (float[2] x) => (float[2] y) { y = Relu(x) }"
    context = Context(({"x": np.ones(2, np.float32)},))
    with pytest.raises(PassError, match="Nothing to dequantize"):
        run_passes(Artifact("onnx", graph(text)), [("dequantize", DequantizeConfig())], context)


def test_borders_of_two_scales_or_of_unknown_kinds_stay_and_are_told():
    text = """net (float[2] x) => (float[2] y)
    <float s = {0.5}, float t = {0.25}, uint8 z = {7}>
    { q = QuantizeLinear(x, s, z)
      y = DequantizeLinear(q, t, z) }"""
    context = Context(({"x": np.ones(2, np.float32)},))
    with pytest.raises(PassError, match="Nothing to dequantize"):
        run_passes(Artifact("onnx", graph(text)), [("dequantize", DequantizeConfig())], context)


def test_without_a_zero_point_the_integers_are_uint8():
    text = """net (float[3] x) => (float[3] y)
    <float s = {0.5}> { q = QuantizeLinear(x, s)
      y = DequantizeLinear(q, s) }"""
    context = Context(({"x": np.array([-1, 3, 900], np.float32)},))
    again = run_passes(Artifact("onnx", graph(text)), [("dequantize", DequantizeConfig())], context)

    (found,) = OrtSession(again, threads=1).run(context.check_feeds[0]).values()
    np.testing.assert_array_equal(found, [0, 3, 127.5])
