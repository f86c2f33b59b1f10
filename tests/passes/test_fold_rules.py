"""The fold pass with onnxscript's rules, those of them that keep what a graph computes."""

import numpy as np
import onnx
import pytest
import torch
from folded_graphs import feeds_of, fold, parse

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.passes import Context
from aigc_compress.passes.export import ExportConfig, ExportPass

ZEROS = {"x": np.zeros((2, 4), np.float32)}


@pytest.mark.parametrize(
    ("operator", "at_zero"),
    [("Add (square, tiny)", np.log(1e-10)), ("Sub (square, minus)", np.log(1e-10))],
)
def test_the_small_number_that_keeps_a_logarithm_finite_stays(operator, at_zero):
    text = f"""g (float[2, 4] x) => (float[2, 4] y)
        <float tiny = {{1e-10}}, float minus = {{-1e-10}}> {{
        square = Mul (x, x)
        above = {operator}
        y = Log (above)
    }}"""
    after, _ = fold(parse(text), feeds_of([2, 4]))
    found = OrtSession(Artifact("onnx", after), threads=1).run(ZEROS)["y"]
    np.testing.assert_allclose(found, at_zero, rtol=1e-6)


def test_a_factor_near_one_stays():
    text = """g (float[2, 4] x) => (float[2, 4] y) <float factor = {1.000005}> {
        y = Mul (x, factor)
    }"""
    after, _ = fold(parse(text), feeds_of([2, 4]))
    assert [node.op_type for node in after.graph.node] == ["Mul"]


class _LogOfPower(torch.nn.Module):
    input_names = ("x",)
    output_names = ("y",)

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return torch.log(self.factor * x * x + 1e-10)


def test_an_export_keeps_the_small_number_too():
    feeds = feeds_of([2, 4])
    result = ExportPass().run(Artifact("torch", _LogOfPower()), ExportConfig(), Context(feeds))
    found = OrtSession(result, threads=1).run(ZEROS)["y"]
    np.testing.assert_allclose(found, np.log(1e-10), rtol=1e-6)


@pytest.mark.parametrize("size", [4, 5])
def test_two_slices_of_an_axis_do_not_stop_the_other_rules(size):
    half = size // 2
    text = f"""g (float[2, {size}] x) => (float[2, {half}] y, float[2, {size - half}] z)
        <int64[1] zero = {{0}}, int64[1] mid = {{{half}}}, int64[1] end = {{{size}}},
         int64[1] axis = {{1}}> {{
        right = Slice (x, mid, end, axis)
        left = Slice (x, zero, mid, axis)
        y = Neg (left)
        positive = Relu (right)
        z = Relu (positive)
    }}"""
    after, numbers = fold(parse(text), feeds_of([2, size]))
    assert numbers["given_up"] == {}
    assert sum(node.op_type == "Relu" for node in after.graph.node) == 1


def test_a_wrong_shape_of_an_output_is_not_believed():
    model = parse("""g (float[N, 6] x) => (float[N, 2, 3] y) <int64[2] tail = {2, 3}> {
        size = Shape <start = 0, end = 1> (x)
        shape = Concat <axis = 0> (size, tail)
        y = Reshape (x, shape)
    }""")
    wrong = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2, 3])
    model.graph.output[0].CopyFrom(wrong)
    after, numbers = fold(model, feeds_of([4, 6], [5, 6]))
    assert numbers["given_up"] == {}
    assert [node.op_type for node in after.graph.node] == ["Reshape"]
