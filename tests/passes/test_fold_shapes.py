"""The fold pass on leftovers, shapes and the face of a graph."""

import numpy as np
import onnx
from folded_graphs import feeds_of, fold, parse, types
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.passes.folding import store_shapes


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
