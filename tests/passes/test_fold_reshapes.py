"""Reshapes get constant shapes where every size is the input's own, and keep their numbers."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.passes import Context, FoldConfig
from aigc_compress.passes.folding import fix_reshapes
from aigc_compress.pipeline import run_passes

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
DROPS_AN_AXIS = """g (float[T, 1, N, 8] x) => (float[A, B, C] y)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3},
 int64[1] four = {4}, int64[1] any = {-1}>
{ t = Transpose<perm = [0, 2, 1, 3]>(x)  s = Shape(t)
  a = Slice(s, zero, one)  b = Slice(s, one, two)  c = Slice(s, two, three)
  d = Slice(s, three, four)  e = Mul(c, d)  f = Reshape(e, any)
  w = Concat<axis = 0>(a, b, f)  y = Reshape(t, w) }"""
MERGES = DROPS_AN_AXIS.replace("[T, 1, N, 8]", "[T, 2, N, 8]")
OF_ANOTHER = """g (float[N, 6] x, float[M, 2] z) => (float[A, B] y)
<int64[1] three = {3}, int64 zero = {0}, int64[1] axis = {0}>
{ s = Shape(z)  m = Gather<axis = 0>(s, zero)  v = Unsqueeze(m, axis)
  w = Concat<axis = 0>(v, three)  y = Reshape(x, w) }"""
TWO_UNKNOWN = """g (float[N, 6] x, float[M, K] z) => (float[A, B] y)
{ s = Shape(z)  y = Reshape(x, s) }"""


def fixed(text):
    model = parser.parse_model(f"{HEADER}\n{text}")
    after, count = fix_reshapes(model)
    return model, after, count


def same(before, after, feeds):
    wanted, found = (OrtSession(Artifact("onnx", m), threads=1).run(feeds) for m in (before, after))
    np.testing.assert_array_equal(wanted["y"], found["y"])


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4))
def test_an_axis_of_one_is_dropped_by_squeeze(steps, batch):
    before, after, count = fixed(DROPS_AN_AXIS)
    assert count == 1
    node = next(each for each in after.graph.node if each.output[0] == "y")
    assert (node.op_type, node.input[0]) == ("Squeeze", "x")
    same(before, after, {"x": np.random.rand(steps, 1, batch, 8).astype(np.float32)})


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4))
def test_two_axes_are_merged_by_a_constant_shape(steps, batch):
    before, after, count = fixed(MERGES)
    assert count == 1
    stored = {each.name: list(each.int64_data or []) for each in after.graph.initializer}
    node = next(each for each in after.graph.node if each.output[0] == "y")
    assert node.input[1] in stored
    same(before, after, {"x": np.random.rand(steps, 2, batch, 8).astype(np.float32)})


def test_a_single_size_of_another_tensor_is_computed():
    before, after, count = fixed(OF_ANOTHER)
    assert count == 1
    feeds = {name: np.random.rand(*shape).astype(np.float32) for name, shape in SHAPES.items()}
    same(before, after, feeds)


SHAPES = {"x": (2, 6), "z": (4, 2)}


def test_two_sizes_that_the_input_does_not_have_are_left_alone():
    _, _, count = fixed(TWO_UNKNOWN)
    assert count == 0


SAME_NAMES = """g (float[a, a, 6] x) => (float[A, B, C] y)
<int64[1] one = {1}, int64[1] two = {2}, int64[1] six = {6}>
{ s = Shape(x)  w = Slice(s, one, two)  v = Concat<axis = 0>(w, w, six)  y = Reshape(x, v) }"""


def test_axes_of_one_name_are_not_believed_to_be_of_one_size():
    _, after, count = fixed(SAME_NAMES)
    shapes = [numpy_helper.to_array(e).tolist() for e in after.graph.initializer if e.dims == [3]]
    assert (count, shapes) == (1, [[-1, 0, 6]])  # the second is the input's own, the first is not


class Stack(torch.nn.Module):
    def __init__(self, kind, *, bidirectional):
        super().__init__()
        self.cell = kind(5, 6, num_layers=2, batch_first=True, bidirectional=bidirectional)

    def forward(self, x):
        return self.cell(x)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "bidirectional"), [(torch.nn.LSTM, False), (torch.nn.GRU, True)], ids=["LSTM", "GRU"]
)
def test_nothing_is_computed_between_the_layers_that_pytorch_exports(kind, bidirectional):
    module, x = Stack(kind, bidirectional=bidirectional).eval(), torch.randn(2, 3, 5)
    axes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}}
    program = torch.onnx.export(
        module, (x,), dynamo=True, dynamic_shapes=axes, output_names=["y"], verbose=False
    )
    before = Artifact("onnx", program.model_proto)
    name = before.payload.graph.input[0].name
    feeds = tuple({name: np.random.rand(*s, 5).astype(np.float32)} for s in ((2, 3), (1, 3)))
    after = run_passes(before, [("fold", FoldConfig())], Context(feeds))
    reshapes = [node for node in after.payload.graph.node if node.op_type == "Reshape"]
    constants = {each.name for each in after.payload.graph.initializer}
    assert all(node.input[1] in constants for node in reshapes)
    kinds = Counter(node.op_type for node in after.payload.graph.node)
    assert kinds["Mul"] == 0  # of sizes
