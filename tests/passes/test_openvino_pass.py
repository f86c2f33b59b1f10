"""INT8 for OpenVINO: borders before layers alone, functions right behind them."""

import numpy as np
import onnx
import onnx.parser
import pytest
from conftest import graph

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import sqnr_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError
from aigc_compress.passes import Context, OpenVinoConfig
from aigc_compress.passes.openvino import OpenVinoPass, move_activations

# Two layers, joined, moved and rectified; and a third that reads them.
JOINED = """net (float[N,4,6,6] x) => (float[N,2,12,12] y)
<float[8,4,1,1] a, float[8,4,3,3] b, float[2,4,1,1] c>
{ left = Conv(x, a)
  right = Conv<pads = [1, 1, 1, 1]>(x, b)
  both = Concat<axis = 1>(left, right)
  wide = DepthToSpace<blocksize = 2>(both)
  lively = LeakyRelu<alpha = 0.2>(wide)
  y = Conv(lively, c) }"""


def net(text=JOINED, seed=0):
    """Return the graph with random numbers in the constants that the text names."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    rng = np.random.default_rng(seed)
    for each in model.graph.value_info:
        shape = [dim.dim_value for dim in each.type.tensor_type.shape.dim]
        values = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, each.name))
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return model


def feeds(count=3, seed=1):
    rng = np.random.default_rng(seed)
    return tuple({"x": rng.normal(size=(n + 1, 4, 6, 6)).astype(np.float32)} for n in range(count))


def outputs(model, given):
    return OrtSession(Artifact("onnx", model), threads=1).run(given)["y"]


def kinds(model):
    return [node.op_type for node in model.graph.node]


def test_functions_move_behind_the_layers_and_the_numbers_stay():
    before = net()
    after, count = move_activations(before)
    assert count == 1
    makers = {name: node for node in after.graph.node for name in node.output}
    functions = [node for node in after.graph.node if node.op_type == "LeakyRelu"]
    assert {makers[node.input[0]].op_type for node in functions} == {"Conv"}
    assert len(functions) == 2
    assert kinds(after)[-2:] == ["DepthToSpace", "Conv"]
    for given in feeds():
        np.testing.assert_array_equal(outputs(before, given), outputs(after, given))


@pytest.mark.parametrize(
    "text",
    [
        JOINED.replace("y = Conv(lively, c)", "z = Conv(lively, c) y = Conv(wide, c) "),
        JOINED.replace("LeakyRelu<alpha = 0.2>(wide)", "Abs(wide)"),
        JOINED.replace("left = Conv(x, a)", "early = Conv(x, a) left = Abs(early)"),
        JOINED.replace("both = Concat<axis = 1>(left, right)", "both = Add(left, right)").replace(
            "[2,4,1,1]", "[2,2,1,1]"
        ),
    ],
    ids=["read by another", "no function", "not made by a layer", "more than moved"],
)
def test_what_is_not_right_behind_moved_layers_stays(text):
    if "z =" in text:
        text = text.replace("(float[N,2,12,12] y)", "(float[N,2,12,12] y, float[N,2,12,12] z)")
    model = net(text)
    after, count = move_activations(model)
    assert count == 0
    assert after is model


def test_a_function_moves_through_an_output_of_the_graph_only_where_nothing_else_reads_it():
    text = JOINED.replace("(float[N,2,12,12] y)", "(float[N,2,12,12] y, float[N,4,12,12] wide)")
    assert move_activations(net(text))[1] == 0
    text = JOINED.replace("(float[N,2,12,12] y)", "(float[N,2,12,12] y, float[N,4,12,12] lively)")
    after, count = move_activations(net(text))
    assert count == 1
    before = OrtSession(Artifact("onnx", net(text)), threads=1).run(feeds()[2])
    found = OrtSession(Artifact("onnx", after), threads=1).run(feeds()[2])
    np.testing.assert_array_equal(before["lively"], found["lively"])


def made(model, **settings):
    context = Context(feeds(), feeds(8, seed=2))
    return OpenVinoPass().run(Artifact("onnx", model), OpenVinoConfig(**settings), context)


def test_borders_stand_before_layers_alone():
    after = made(net())
    model, numbers = after.payload, after.history[-1].numbers
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = {name: node for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        if node.op_type == "DequantizeLinear":
            assert readers[node.output[0]].op_type == "Conv"
    assert numbers["operators"]["int8"] == {"Conv": 3}
    assert numbers["functions_moved"] == 1
    assert numbers["sqnr_db"] > 30
    given = feeds()[2]
    assert sqnr_db(outputs(net(), given), outputs(model, given)) > 30


def test_activations_have_a_zero_point_and_named_nodes_stay_float():
    model = net()
    name = move_activations(model)[0].graph.node[-1].name
    after = made(model, keep_float=(name,)).payload
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in after.graph.initializer}
    zeros = [stored[n.input[2]] for n in after.graph.node if n.op_type == "QuantizeLinear"]
    assert {each.dtype.name for each in zeros} == {"uint8"}
    assert after.graph.node[-1].op_type == "Conv"
    assert "c" in after.graph.node[-1].input


def test_pairs_of_products_leave_room_in_int16_only_where_that_is_asked():
    weights = {}
    for reduces in (False, True):
        after = made(net(), reduce_range=reduces).payload
        weights[reduces] = next(
            onnx.numpy_helper.to_array(each).astype(int)
            for each in after.graph.initializer
            if each.name == "b_quantized"
        )
    assert np.abs(weights[False]).max() == 127
    sums = np.abs(weights[True][:, ::2] + weights[True][:, 1::2])
    assert sums.max() <= 32767 // 255


def test_a_graph_without_layers_is_refused():
    with pytest.raises(PassError, match="Nothing to quantize"):
        made(graph("net (float[N,4,6,6] x) => (float[N,4,6,6] y) { y = Relu(x) }"))
