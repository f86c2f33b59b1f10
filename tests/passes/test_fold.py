"""The fold pass on constants and branches, and steps that are given up."""

import numpy as np
import onnx
import pytest
from folded_graphs import feeds_of, fold, parse, types
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.passes.operators import all_nodes


def table_of(model, name):
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def test_weights_behind_a_chain_of_constants_become_an_initializer():
    text = """g (float[2, 3] x) => (float[2, 4] y) <float[12] flat = {0,1,2,3,4,5,6,7,8,9,10,11}> {
        shape = Constant <value_ints = [4, 1, 3]> ()
        a = Reshape (flat, shape)
        axes = Constant <value_ints = [1]> ()
        b = Squeeze (a, axes)
        c = Transpose <perm = [1, 0]> (b)
        d = Cast <to = 11> (c)
        e = Cast <to = 1> (d)
        f = Identity (e)
        w = Concat <axis = 1> (f)
        y = MatMul (x, w)
    }"""
    after, numbers = fold(parse(text), feeds_of([2, 3]))
    assert types(after) == ["MatMul"]
    (weights,) = after.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(weights), np.arange(12).reshape(4, 3).T)
    assert numbers["rewrites"]["constants"] == 9
    assert numbers["gone"]["Cast"] == 2


LSTM_IN_A_BRANCH = """g (float[1, 1, 3] x, float flag) => (float[1, 1, 1, 2] y) <float zero = {0}> {
    axes = Constant <value_ints = [0]> ()
    is_on = Greater (flag, zero)
    y = If (is_on) <
        then_branch = on () => (float[1, 1, 1, 2] a) {
            w = Unsqueeze (w0, axes)
            r = Unsqueeze (r0, axes)
            a, h, c = LSTM <hidden_size = 2> (x, w, r)
        },
        else_branch = off () => (float[1, 1, 1, 2] b) {
            w1 = Neg (w0)
            w2 = Unsqueeze (w1, axes)
            r2 = Unsqueeze (r0, axes)
            b, h2, c2 = LSTM <hidden_size = 2> (x, w2, r2)
        }
    >
}"""


def lstm_in_a_branch():
    model = parse(LSTM_IN_A_BRANCH)
    rng = np.random.default_rng(0)
    for name, shape in (("w0", (8, 3)), ("r0", (8, 2))):
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def test_lstm_weights_computed_inside_a_branch_become_initializers():
    model = lstm_in_a_branch()
    (given,) = feeds_of([1, 1, 3])
    feeds = tuple({**given, "flag": np.array(flag, np.float32)} for flag in (-1, 1))
    after, _ = fold(model, feeds)
    assert types(after) == ["Greater", "If", "LSTM", "LSTM"]
    constants = {each.name for each in after.graph.initializer}
    for node in all_nodes(after.graph):
        if node.op_type == "LSTM":
            assert constants.issuperset(node.input[1:3])
    stored = [numpy_helper.to_array(each) for each in after.graph.initializer]
    negated = -table_of(model, "w0")[np.newaxis]
    assert any(np.array_equal(each, negated) for each in stored)


def test_a_body_of_loop_loses_its_constants_too():
    text = """g (float[2] x) => (float[2] y)
        <int64 trips = {3}, bool go = {1}, float[2] two = {2, 2}> {
        y = Loop (trips, go, x) <body = step (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
            d = Identity (c)
            half = Reciprocal (two)
            scale = Neg (half)
            t = Mul (s, scale)
        }>
    }"""
    after, _ = fold(parse(text), feeds_of([2]))
    assert types(after) == ["Identity", "Loop", "Mul"]


@pytest.mark.parametrize("is_on", [0, 1])
def test_an_if_with_a_computed_constant_condition_is_replaced_by_its_branch(is_on):
    text = f"""g (float[2] x) => (float[2] y, float[2] z) <bool flag = {{{is_on}}}> {{
        no = Not (flag)
        yes = Not (no)
        y, z = If (yes) <
            then_branch = on () => (float[2] a, float[2] b) {{ a = Exp (x)  b = Neg (a) }},
            else_branch = off () => (float[2] a, float[2] b) {{ b = Abs (x)  a = Identity (b) }}
        >
    }}"""
    after, numbers = fold(parse(text), feeds_of([2]))
    assert types(after)[-2:] == (["Exp", "Neg"] if is_on else ["Abs", "Identity"])
    assert numbers["gone"]["If"] == 1
    assert numbers["given_up"] == {}


def test_an_if_inside_a_branch_goes_and_one_that_depends_on_an_input_stays():
    text = """g (float[2] x, bool flag) => (float[2] y) <bool always = {1}> {
        y = If (flag) <
            then_branch = on () => (float[2] a) {
                a = If (always) <
                    then_branch = deep () => (float[2] d) { d = Exp (x) },
                    else_branch = other () => (float[2] e) { e = Abs (x) }
                >
            },
            else_branch = off () => (float[2] b) { b = Neg (x) }
        >
    }"""
    (given,) = feeds_of([2])
    feeds = tuple({**given, "flag": np.array(flag)} for flag in (True, False))
    after, numbers = fold(parse(text), feeds)
    assert types(after) == ["Exp", "If", "Neg"]
    assert numbers["gone"] == {"If": 1, "Abs": 1}


def test_branches_that_use_the_same_names_are_both_taken_in():
    branch = """then_branch = on () => (float[2] out) {
        inner = Neg (two)
        half = Mul (inner, two)
        out = Add (SOURCE, half)
    }, else_branch = off () => (float[2] out) { out = Identity (SOURCE) }"""
    text = f"""g (float[2] x) => (float[2] y) <bool always = {{1}}, float[2] two = {{2, 3}}> {{
        a = If (always) <{branch.replace("SOURCE", "x")}>
        y = If (always) <{branch.replace("SOURCE", "a").replace("Mul", "Sub")}>
    }}"""
    after, numbers = fold(parse(text), feeds_of([2]))
    assert types(after) == ["Add", "Add"]
    assert numbers["given_up"] == {}


def dequantized(channels, *, op="Conv"):
    """Return a graph whose weights are stored as int8, and the floats that they stand for."""
    rng = np.random.default_rng(0)
    shape = (4, channels, 1, 1) if op == "Conv" else (channels, 4)
    integers = rng.integers(-127, 128, shape).astype(np.int8)
    scale, zero_point = np.array([0.25, 0.5, 1, 2], np.float32), np.array([3, 0, -1, 2], np.int8)
    axis, spread = (0, (4, 1, 1, 1)) if op == "Conv" else (1, (1, 4))
    tables = {"q": integers, "s": scale, "z": zero_point}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=axis),
        helper.make_node(op, ["x", "w"], ["y"]),
    ]
    rest = [2, 2] if op == "Conv" else []
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, *rest])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, *rest])
    stored = [numpy_helper.from_array(value, name) for name, value in tables.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    floats = (integers.astype(np.float32) - zero_point.reshape(spread)) * scale.reshape(spread)
    return made, floats


def test_weights_stored_as_integers_become_floats_where_nothing_runs_on_integers():
    model, wanted = dequantized(8)
    after, numbers = fold(model, feeds_of([2, 8, 2, 2]))
    assert types(after) == ["Conv"]
    np.testing.assert_array_equal(numpy_helper.to_array(after.graph.initializer[0]), wanted)
    assert numbers["rewrites"]["dequantize"] == 1


def test_large_weights_stored_as_integers_stay_rather_than_grow_the_graph():
    model, _ = dequantized(500_000)
    after, numbers = fold(model, feeds_of([1, 500_000, 2, 2]))
    assert types(after) == ["Conv", "DequantizeLinear"]
    assert "grow" in numbers["given_up"]["dequantize"]


def test_integer_weights_of_matmul_stay_since_onnxruntime_reads_them_as_they_are():
    model, _ = dequantized(8, op="MatMul")
    after, numbers = fold(model, feeds_of([2, 8]))
    assert types(after) == ["DequantizeLinear", "MatMul"]
    assert numbers["given_up"] == {}


def test_a_graph_with_quantized_activations_keeps_its_integer_weights():
    text = """g (float[2, 2] x) => (float[2, 2] y)
        <float s = {0.5}, int8 z = {0}, int8[2, 2] q = {1, 2, 3, 4}> {
        xq = QuantizeLinear (x, s, z)
        xf = DequantizeLinear (xq, s, z)
        w = DequantizeLinear (q, s, z)
        y = MatMul (xf, w)
    }"""
    after, _ = fold(parse(text), feeds_of([2, 2]))
    assert types(after) == ["DequantizeLinear", "DequantizeLinear", "MatMul", "QuantizeLinear"]


def test_a_constant_made_large_by_expand_is_not_stored_and_the_rest_is_folded():
    text = """g (float[N, 3, 1, 1] x) => (float[N, 3, 1000, 1000] y)
        <float one = {1}, float three = {3}, int64[4] size = {1, 3, 1000, 1000}> {
        large = Expand (one, size)
        two = Neg (three)
        a = Mul (x, two)
        y = Add (a, large)
    }"""
    after, numbers = fold(parse(text), feeds_of([1, 3, 1, 1]))
    assert after.ByteSize() < 10_000
    assert numbers["rewrites"]["constants"] == 1
    assert numbers["given_up"].keys() <= {"onnxruntime"}


def test_a_step_that_changes_numbers_is_given_up_with_the_reason(monkeypatch):
    def double(model):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        table = numpy_helper.to_array(changed.graph.initializer[0]) * 2
        changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "c"))
        return changed, 1

    monkeypatch.setattr("aigc_compress.passes.fold.fold_constants", double)
    text = "g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { y = Mul (x, c) }"
    after, numbers = fold(parse(text), feeds_of([2]))
    # Twice the value is noise as strong as the signal: 0 dB.
    assert numbers["given_up"] == {"constants": "outputs agree to 0 dB only"}
    assert "constants" not in numbers["rewrites"]
    np.testing.assert_array_equal(table_of(after, "c"), [1, 2])


def test_a_step_that_fails_is_given_up_with_the_reason(monkeypatch):
    def fail(_model):
        raise RuntimeError("no such rule\nsecond line")

    monkeypatch.setattr("aigc_compress.passes.fold.absorb_affine", fail)
    text = "g (float[2] x) => (float[2] y) { a = Identity (x)  y = Neg (a) }"
    _, numbers = fold(parse(text), feeds_of([2]))
    assert numbers["given_up"] == {"affine": "no such rule"}


def test_folding_leaves_its_input_as_it_was_and_twice_gives_the_same_bytes():
    model = lstm_in_a_branch()
    before = model.SerializeToString()
    (given,) = feeds_of([1, 1, 3])
    feeds = ({**given, "flag": np.array(1, np.float32)},)
    first, second = (fold(model, feeds)[0].SerializeToString() for _ in range(2))
    assert first == second
    assert model.SerializeToString() == before
