"""Weights of floats stored as INT8: what is converted, what it costs, and what stays as it is."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model
from test_rounding import LAYERS, dependent, one_layer, quantized

from aigc_compress.artifact import Artifact
from aigc_compress.errors import PassError
from aigc_compress.passes import Context, StoreConfig
from aigc_compress.passes.operators import operators_at_run_time
from aigc_compress.passes.store import StorePass, store_weights

RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}


def run(model, **feeds):
    return ort.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


def agreement_db(wanted, found):
    noise = np.square(wanted - found).sum()
    return 10 * np.log10(np.square(wanted).sum() / max(noise, 1e-30))


def at_run_time(model):
    """Return the operators that are left of a graph when it is loaded."""
    return Counter(operators_at_run_time(model)["float"])


def recurrent(op, rng):
    gates, hidden, width = RECURRENT[op], 16, 24
    tables = {
        "w": rng.standard_normal((2, gates * hidden, width)) / 5,
        "r": rng.standard_normal((2, gates * hidden, hidden)) / 4,
    }
    node = helper.make_node(
        op, ["x", *tables], ["y"], hidden_size=hidden, direction="bidirectional"
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 2, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(each.astype(np.float32), name) for name, each in tables.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_stored_in_integers_and_computes_on_floats(name):
    op, weight_shape, x_shape, given = LAYERS[name]
    rng = np.random.default_rng(0)
    model = one_layer(op, rng.standard_normal(weight_shape), x_shape, **given)
    stored, converted = store_weights(model, [op], least=16)
    assert converted == {op: 1}
    kinds = {each.name: each.data_type for each in stored.graph.initializer}
    assert kinds == {"w_int8": TensorProto.INT8, "w_scale": TensorProto.FLOAT}
    assert at_run_time(stored) == at_run_time(model)
    x = dependent(rng, *x_shape)
    assert agreement_db(run(model, x=x), run(stored, x=x)) > 35


@pytest.mark.parametrize("name", LAYERS)
def test_rounding_for_the_outputs_is_closer_than_to_the_nearest(name):
    op, weight_shape, x_shape, given = LAYERS[name]
    rng = np.random.default_rng(1)
    model = one_layer(op, rng.standard_normal(weight_shape), x_shape, **given)
    feeds = [{"x": dependent(rng, *x_shape)} for _ in range(8)]
    found = {}
    for rounding in ("nearest", "adaptive"):
        config = StoreConfig(least=16, rounding=rounding)
        made = StorePass().run(Artifact("onnx", model), config, Context(feeds[:1], feeds))
        noise = [agreement_db(run(model, **each), run(made.payload, **each)) for each in feeds]
        found[rounding] = np.mean(noise)
        assert made.history[-1].numbers["weights_only"] == {"converted": 1, "operators": {op: 1}}
    assert found["adaptive"] > found["nearest"] + 0.5


@pytest.mark.parametrize("op", RECURRENT)
def test_recurrent_weights_have_one_scale_per_unit_of_a_gate(op):
    rng = np.random.default_rng(0)
    model = recurrent(op, rng)
    stored, converted = store_weights(model, [op], least=16)
    assert converted == {op: 2}
    scales = {
        each.name: tuple(each.dims)
        for each in stored.graph.initializer
        if each.name.endswith("_scale")
    }
    assert scales == dict.fromkeys(("w_scale", "r_scale"), (2, RECURRENT[op] * 16, 1))
    assert at_run_time(stored) == at_run_time(model)
    x = rng.standard_normal((5, 2, 24)).astype(np.float32)
    assert agreement_db(run(model, x=x), run(stored, x=x)) > 30


def tied(text):
    """Return a graph of 4 words, or more lines, around an embedding of 40 words of 32 numbers."""
    model = parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (int64[4] word) => (float[4, 40] y) {{
            read = Gather (table, word)
            {text}
        }}"""
    )
    table = np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    return model


def test_a_tensor_with_one_kind_of_reader_is_stored_once():
    model = tied("y = Gemm <transB = 1> (read, table)")  # both read it along the same axis
    stored, converted = store_weights(model, ["Gather", "Gemm"])
    assert sum(converted.values()) == 1
    assert [each.data_type for each in stored.graph.initializer].count(TensorProto.INT8) == 1
    words = np.arange(4)
    assert agreement_db(run(model, word=words), run(stored, word=words)) > 35


@pytest.mark.parametrize(
    ("text", "operators"),
    [
        ("turned = Transpose <perm = [1, 0]> (table)\ny = MatMul (read, turned)", ["Gather"]),
        ("y = Gemm <transB = 1> (read, table)", ["Gemm"]),
    ],
)
def test_a_tensor_that_something_else_reads_stays_float(text, operators):
    model = tied(text)
    assert store_weights(model, operators) == (model, {})


def test_weights_inside_a_branch_and_names_that_are_taken():
    model = parse_model(
        """<ir_version: 3, opset_import: ["" : 17]>
        g (float[2, 64] x, bool which, float[64, 32] w, float[64, 32] w_int8) => (float[2, 32] y)
        <float[64, 32] w = {0}, float[64, 32] w_int8 = {0}> {
            y = If (which) <
                then_branch = t () => (float[2, 32] a) { a = MatMul (x, w) },
                else_branch = e () => (float[2, 32] b) { b = MatMul (x, w_int8) }
            >
        }"""
    )
    rng = np.random.default_rng(0)
    del model.graph.initializer[:]
    for name in ("w", "w_int8"):
        table = rng.standard_normal((64, 32)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(table, name))
    stored, converted = store_weights(model, ["MatMul"])
    onnx.checker.check_model(stored, full_check=True)
    assert converted == {"MatMul": 2}
    assert [each.name for each in stored.graph.input] == ["x", "which"]
    x = rng.standard_normal((2, 64)).astype(np.float32)
    for which in (True, False):
        feeds = {"x": x, "which": np.array(which)}
        assert agreement_db(run(model, **feeds), run(stored, **feeds)) > 35


def test_biases_between_integers_become_floats_that_give_the_same_result():
    rng = np.random.default_rng(0)
    net = one_layer("Gemm", rng.standard_normal((64, 32)), (8, 64))
    net.graph.node[0].input.append("bias")
    bias = rng.standard_normal(32).astype(np.float32)
    net.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    net.graph.node.append(helper.make_node("MatMul", ["y", "head"], ["z"], name="head"))
    head = rng.standard_normal((32, 64)).astype(np.float32)
    net.graph.initializer.append(numpy_helper.from_array(head, "head"))
    net.graph.output[0].name = "z"
    net.graph.output[0].type.tensor_type.ClearField("shape")
    feeds = [{"x": rng.standard_normal((8, 64)).astype(np.float32)} for _ in range(4)]
    before = quantized(net, feeds, only=("layer",))
    config = StoreConfig(rounding="nearest")
    made = StorePass().run(Artifact("onnx", before), config, Context(feeds[:1], feeds))
    numbers = made.history[-1].numbers
    assert numbers["float_biases"] == 1
    assert numbers["weights_only"]["operators"] == {"MatMul": 1}
    assert operators_at_run_time(made.payload)["int8"] == {"QGemm": 1}
    assert not [each for each in made.payload.graph.initializer if each.data_type == 6]
    only_stored = store_weights(before, ["MatMul"])[0]
    np.testing.assert_array_equal(run(made.payload, **feeds[0]), run(only_stored, **feeds[0]))


def test_what_there_is_nothing_to_store_of_is_said():
    model = one_layer("Gemm", np.ones((4, 4)), (2, 4))
    with pytest.raises(PassError, match="at least 1024 elements"):
        StorePass().run(Artifact("onnx", model), StoreConfig(), Context(()))
