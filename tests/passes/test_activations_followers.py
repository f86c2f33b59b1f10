"""Every operator that is said to follow integers does, between two Convs in ONNX Runtime."""

from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import optimized
from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.quantize import QuantizePass
from aigc_compress.passes.quantize.static import FOLLOWERS, integer_region

CHANNELS = 8
WHOLE = {
    "ends": [7],
    "picked": [3, 0, 2],
    "shape": [1, CHANNELS, 16, 4],
    "square": [1, CHANNELS, 8, 8],
    "starts": [1],
    "third": [2],
    "zeroth": [0],
}
FLOATS = {"doubled": [1, 1, 2, 2], "three": 3.0, "six": 6.0, "zero": 0.0}

# By name: the nodes between h and t, each an operator, its inputs, outputs and attributes.
CASES = {
    "Add": [("Add", ["h", "three"], ["t"], {})],
    "AveragePool": [("AveragePool", ["h"], ["t"], {"kernel_shape": [2, 2]})],
    "Clip": [("Clip", ["h", "zero", "six"], ["t"], {})],
    "Concat": [("Concat", ["h", "h"], ["t"], {"axis": 2})],
    "DepthToSpace": [
        ("DepthToSpace", ["h"], ["wide"], {"blocksize": 2}),
        ("Reshape", ["wide", "square"], ["t"], {}),
    ],
    "Flatten": [("Flatten", ["h"], ["flat"], {}), ("Reshape", ["flat", "shape"], ["t"], {})],
    "Gather": [("Gather", ["h", "picked"], ["t"], {"axis": 2})],
    "GlobalAveragePool": [("GlobalAveragePool", ["h"], ["t"], {})],
    "LeakyRelu": [("LeakyRelu", ["h"], ["t"], {"alpha": 0.1})],
    "MaxPool": [("MaxPool", ["h"], ["t"], {"kernel_shape": [2, 2]})],
    "Mul": [("Mul", ["h", "three"], ["t"], {})],
    "Relu": [("Relu", ["h"], ["t"], {})],
    "Reshape": [("Reshape", ["h", "shape"], ["t"], {})],
    "Resize": [("Resize", ["h", "", "doubled"], ["t"], {"mode": "nearest"})],
    "Sigmoid": [("Sigmoid", ["h"], ["t"], {})],
    "Slice": [("Slice", ["h", "starts", "ends", "third"], ["t"], {})],
    "Softmax": [("Softmax", ["h"], ["t"], {"axis": 1})],
    "Split": [
        ("Split", ["h"], ["one", "other"], {"axis": 2}),
        ("Concat", ["other", "one"], ["t"], {"axis": 2}),
    ],
    "Squeeze": [("Squeeze", ["h", "zeroth"], ["s"], {}), ("Unsqueeze", ["s", "zeroth"], ["t"], {})],
    "Transpose": [("Transpose", ["h"], ["t"], {"perm": [0, 1, 3, 2]})],
    "Unsqueeze": [
        ("Unsqueeze", ["h", "zeroth"], ["s"], {}),
        ("Squeeze", ["s", "zeroth"], ["t"], {}),
    ],
}


def between_convs(nodes):
    rng = np.random.default_rng(0)
    tables = {name: np.array(each, np.int64) for name, each in WHOLE.items()}
    tables |= {name: np.array(each, np.float32) for name, each in FLOATS.items()}
    tables |= {
        name: rng.standard_normal((CHANNELS, CHANNELS, 1, 1)).astype(np.float32)
        for name in ("w", "v")
    }
    made = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        *(helper.make_node(op, given, out, **how) for op, given, out, how in nodes),
        helper.make_node("Conv", ["t", "v"], ["y"]),
    ]
    read = {name for node in made for name in node.input}
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", kind, [1, CHANNELS, 8, 8])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(each, name) for name, each in tables.items() if name in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def at_run_time(model):
    rng = np.random.default_rng(1)
    shape = (1, CHANNELS, 8, 8)
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(2)]
    context = Context(tuple(feeds), tuple(feeds))
    config = QuantizeConfig(mode="static", ranges="auto")
    done = QuantizePass().run(Artifact("onnx", model), config, context)
    return Counter(node.op_type for node in optimized(done.payload).graph.node)


def test_every_follower_has_a_case():
    assert CASES.keys() == set(FOLLOWERS)


@pytest.mark.parametrize("op", FOLLOWERS)
def test_an_operator_that_follows_needs_no_border_of_its_own(op):
    found = at_run_time(between_convs(CASES[op]))
    assert found["QLinearConv"] == 2
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)


def test_a_resize_that_interpolates_does_not_follow():
    nodes = [("Resize", ["h", "", "doubled"], ["t"], {"mode": "linear"})]
    model = between_convs(nodes)
    for node in model.graph.node:
        node.name = f"the {node.output[0]}"
    assert integer_region(model) == ["the h", "the y"]
