"""The steps of the fold pass beside channel maps: constants, branches, leftovers, shapes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.passes import Context
from aigc_compress.passes.fold import FoldConfig, FoldPass
from aigc_compress.passes.folding import store_shapes
from aigc_compress.passes.operators import all_nodes


def parse(text, *, opset=17, ir_version=8):
    return parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{text}')


def feeds_of(*shapes, name="x"):
    rng = np.random.default_rng(0)
    return tuple({name: rng.standard_normal(shape).astype(np.float32)} for shape in shapes)


def fold(model, feeds, **settings):
    """Fold a graph, compare it with the one before, and return it and the numbers."""
    result = FoldPass().run(Artifact("onnx", model), FoldConfig(**settings), Context(feeds))
    before, after = (
        OrtSession(Artifact("onnx", each), threads=1) for each in (model, result.payload)
    )
    for each in feeds:
        wanted, found = before.run(each), after.run(each)
        for key, value in wanted.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5)
    return result.payload, result.history[-1].numbers


def types(model):
    return sorted(node.op_type for node in all_nodes(model.graph))


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


def test_what_no_output_needs_goes():
    text = """g (float[2] x) => (float[2] y) <float[2] used = {1, 2}, float[2] spare = {3, 4}> {
        y = Add (x, used)
        lost = Mul (x, spare)
        further = Exp (lost)
    }"""
    after, _ = fold(parse(text), feeds_of([2]))
    assert types(after) == ["Add"]
    assert [each.name for each in after.graph.initializer] == ["used"]


def test_weights_that_old_files_list_as_inputs_are_constants_and_unused_ones_go():
    text = """g (float[2] x, float[2] used, float[2] spare) => (float[2] y)
        <float[2] used = {1, 2}, float[2] spare = {3, 4}> { y = Add (x, used) }"""
    after, numbers = fold(parse(text, opset=11, ir_version=3), feeds_of([2]))
    assert [each.name for each in after.graph.input] == ["x"]
    assert [each.name for each in after.graph.initializer] == ["used"]
    assert after.ir_version >= 4
    assert numbers["rewrites"]["inputs"] == 2
    assert numbers["rewrites"]["opset"] == 6
    onnx.checker.check_model(after)


def test_equal_initializers_are_stored_once():
    rng = np.random.default_rng(0)
    square = rng.standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["y"]),
    ]
    face = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 64]) for n in "xy"]
    tables = [numpy_helper.from_array(square, name) for name in "ab"]
    graph = helper.make_graph(nodes, "g", face[:1], face[1:], tables)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    after, numbers = fold(model, feeds_of([3, 64]))
    assert len(after.graph.initializer) == 1
    assert numbers["rewrites"]["duplicates"] == 1


def shapes_of(model):
    return {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }


def test_shapes_of_inner_tensors_are_stored_with_the_names_of_the_inputs_axes():
    text = """g (float[N, 3] x) => (float[N, 6] y) {
        a = Exp (x)
        b = Concat <axis = 1> (a, x)
        y = Neg (b)
    }"""
    after, numbers = fold(parse(text), feeds_of([2, 3], [5, 3]))
    assert shapes_of(after) == {"a": ["N", 3], "b": ["N", 6]}
    assert numbers["rewrites"]["shapes"] == 2


def test_a_name_that_stands_for_several_sizes_names_no_inner_axis():
    model = parse("g (float[A, B, 3] x) => (float[A, B, 3] y) { a = Exp (x)  y = Neg (a) }")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "?"
        value.type.tensor_type.shape.dim[1].dim_param = "?"
    after, _ = fold(model, feeds_of([2, 4, 3]))
    assert shapes_of(after) == {"a": ["", "", 3]}


def test_a_size_of_minus_one_as_some_exporters_write_it_counts_as_unknown():
    model = parse("g (float[A, 3] x) => (float[A, 3] y) { a = Exp (x)  y = Neg (a) }")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    after, _ = fold(model, feeds_of([2, 3]))
    assert shapes_of(after) == {"a": ["", 3]}


def test_a_stored_shape_that_is_wrong_goes():
    model = parse("g (float[N, 3] x) => (float[N, 3] y) { a = Exp (x)  y = Neg (a) }")
    wrong = helper.make_tensor_value_info("a", TensorProto.FLOAT, [7, 3])
    model.graph.value_info.append(wrong)
    after, _ = fold(model, feeds_of([2, 3], [5, 3]))
    assert shapes_of(after) == {"a": ["N", 3]}


def test_a_shape_that_a_run_contradicts_is_not_stored():
    text = """g (float[N, 3] x, bool flag) => (float[M, 3] y) {
        a = If (flag) <
            then_branch = on () => (float[N, 3] b) { b = Concat <axis = 0> (x, x) },
            else_branch = off () => (float[N, 3] c) { c = Neg (x) }
        >
        y = Abs (a)
    }"""
    model = parse(text)
    (x,) = feeds_of([2, 3])
    for flag, wanted in ((False, {"a": ["N", 3]}), (True, {})):
        after, _ = store_shapes(model, [{**x, "flag": np.array(flag)}])
        assert shapes_of(after) == wanted


def test_declared_inputs_and_outputs_stay_as_they_were():
    model = parse("g (float[batch, 3] x) => (float[out, width] y) { a = Exp (x)  y = Neg (a) }")
    after, _ = fold(model, feeds_of([2, 3], [5, 3]))
    assert (after.graph.input, after.graph.output) == (model.graph.input, model.graph.output)


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
