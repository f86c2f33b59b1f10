"""BatchNormalization and Mul, Add, Sub, Div by constants, taken into their linear neighbours."""

import itertools
from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.passes.folding import absorb_affine, absorb_batch_norm

CHANNELS = 6


def table(rng, *shape):
    return rng.uniform(0.5, 2, shape).astype(np.float32) * rng.choice([-1, 1], shape)


def model_of(nodes, tables, shape, *, dtype=np.float32):
    """Return a graph from x to y; `shape` is that of x."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in tables.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def linear_node(rng, op, x, y, *, groups=1, padded=False, transposed=False, biased=True):
    """Return a linear operator from CHANNELS to CHANNELS, and its tables."""
    attributes = {}
    if op in ("Conv", "ConvTranspose"):
        shape = (CHANNELS, CHANNELS // groups, 3, 2)
        attributes = {"group": groups, "pads": [1, 0, 1, 1] if padded else [0] * 4}
    else:
        shape = (CHANNELS, CHANNELS)
    if op == "Gemm":
        attributes = {"alpha": 0.5, "beta": 2.0, "transB": int(transposed)}
    tables = {f"{y}_w": table(rng, *shape)}
    if biased and op != "MatMul":
        tables[f"{y}_b"] = table(rng, CHANNELS)
    return helper.make_node(op, [x, *tables], [y], **attributes), tables


def batch_norm_node(rng, x, y):
    tables = {f"{y}_{name}": table(rng, CHANNELS) for name in ("gamma", "beta", "mean")}
    tables[f"{y}_variance"] = np.abs(table(rng, CHANNELS))
    return helper.make_node("BatchNormalization", [x, *tables], [y], epsilon=0.01), tables


def input_of(rng, op):
    shape = [2, CHANNELS, 7, 5] if op.startswith("Conv") else [4, CHANNELS]
    return rng.standard_normal(shape).astype(np.float32)


def assert_same(before, after, x):
    """Run both in ONNX Runtime; float32 sums of some tens of products agree to about 1e-6."""
    found = [
        OrtSession(Artifact("onnx", each), threads=1).run({"x": x})["y"] for each in (before, after)
    ]
    assert found[0].shape == found[1].shape
    np.testing.assert_allclose(found[1], found[0], atol=2e-5 * np.abs(found[0]).max())


def types(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("op", "settings"),
    [
        ("Conv", {}),
        ("Conv", {"groups": 3, "padded": True}),
        ("ConvTranspose", {}),
        ("ConvTranspose", {"groups": 3, "padded": True}),
        ("Gemm", {}),
        ("Gemm", {"transposed": True}),
    ],
)
def test_batch_norm_goes_into_the_operator_before_it(op, settings, biased):
    rng = np.random.default_rng(0)
    linear, weights = linear_node(rng, op, "x", "h", biased=biased, **settings)
    norm, tables = batch_norm_node(rng, "h", "y")
    x = input_of(rng, op)
    before = model_of([linear, norm], {**weights, **tables}, x.shape)
    after, count = absorb_batch_norm(before)
    assert (types(after), count) == ([op], 1)
    assert_same(before, after, x)


def test_batch_norm_after_matmul_makes_a_gemm():
    rng = np.random.default_rng(0)
    linear, weights = linear_node(rng, "MatMul", "x", "h")
    norm, tables = batch_norm_node(rng, "h", "y")
    x = input_of(rng, "MatMul")
    before = model_of([linear, norm], {**weights, **tables}, x.shape)
    after, count = absorb_batch_norm(before)
    assert (types(after), count) == (["Gemm"], 1)
    assert_same(before, after, x)


@pytest.mark.parametrize(
    ("op", "settings"),
    [
        ("Conv", {}),
        ("Conv", {"groups": 3}),
        ("Gemm", {}),
        ("Gemm", {"transposed": True, "biased": False}),
    ],
)
def test_batch_norm_goes_into_the_operator_after_it(op, settings):
    rng = np.random.default_rng(0)
    norm, tables = batch_norm_node(rng, "x", "h")
    linear, weights = linear_node(rng, op, "h", "y", **settings)
    x = input_of(rng, op)
    before = model_of([norm, linear], {**weights, **tables}, x.shape)
    after, count = absorb_batch_norm(before)
    assert (types(after), count) == ([op], 1)
    assert_same(before, after, x)


@pytest.mark.parametrize(
    ("op", "settings"),
    [("Conv", {"padded": True}), ("ConvTranspose", {}), ("ConvTranspose", {"padded": True})],
)
def test_a_shift_before_zero_padding_stays(op, settings):
    rng = np.random.default_rng(0)
    norm, tables = batch_norm_node(rng, "x", "h")
    linear, weights = linear_node(rng, op, "h", "y", **settings)
    before = model_of([norm, linear], {**weights, **tables}, [2, CHANNELS, 7, 5])
    assert absorb_batch_norm(before) == (before, 0)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_batch_norm_without_a_shift_goes_into_a_padded_operator_after_it(op):
    rng = np.random.default_rng(0)
    norm, tables = batch_norm_node(rng, "x", "h")
    for name in ("beta", "mean"):
        tables[f"h_{name}"] = np.zeros(CHANNELS)
    linear, weights = linear_node(rng, op, "h", "y", groups=2, padded=True)
    x = input_of(rng, op)
    before = model_of([norm, linear], {**weights, **tables}, x.shape)
    after, _ = absorb_batch_norm(before)
    assert types(after) == [op]
    assert_same(before, after, x)


def test_batch_norm_in_training_form_stays():
    rng = np.random.default_rng(0)
    linear, weights = linear_node(rng, "Conv", "x", "h")
    norm, tables = batch_norm_node(rng, "h", "y")
    norm.output.extend(["running_mean", "running_variance"])
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    before = model_of([linear, norm], {**weights, **tables}, [2, CHANNELS, 7, 5])
    assert absorb_batch_norm(before) == (before, 0)


def test_an_inner_tensor_that_others_read_keeps_its_numbers():
    rng = np.random.default_rng(0)
    linear, weights = linear_node(rng, "Conv", "x", "h")
    norm, tables = batch_norm_node(rng, "h", "n")
    both = helper.make_node("Add", ["h", "n"], ["y"])
    before = model_of([linear, norm, both], {**weights, **tables}, [2, CHANNELS, 7, 5])
    assert absorb_affine(before) == (before, 0)


def test_large_weights_of_two_operators_are_not_copied():
    rng = np.random.default_rng(0)
    weights = table(rng, CHANNELS, CHANNELS, 16, 16)
    nodes, tables = [], {"w": weights}
    for name in ("a", "b"):
        norm, its_tables = batch_norm_node(rng, f"{name}_h", f"{name}_y")
        nodes += [helper.make_node("Conv", ["x", "w"], [f"{name}_h"]), norm]
        tables.update(its_tables)
    nodes.append(helper.make_node("Add", ["a_y", "b_y"], ["y"]))
    before = model_of(nodes, tables, [1, CHANNELS, 17, 17])
    assert absorb_batch_norm(before) == (before, 0)


def test_small_weights_of_two_operators_get_a_copy_each():
    rng = np.random.default_rng(0)
    nodes, tables = [], {"w": table(rng, CHANNELS, CHANNELS, 3, 3)}
    for name in ("a", "b"):
        norm, its_tables = batch_norm_node(rng, f"{name}_h", f"{name}_y")
        nodes += [helper.make_node("Conv", ["x", "w"], [f"{name}_h"]), norm]
        tables.update(its_tables)
    nodes.append(helper.make_node("Add", ["a_y", "b_y"], ["y"]))
    x = input_of(rng, "Conv")
    before = model_of(nodes, tables, x.shape)
    after, count = absorb_batch_norm(before)
    assert (Counter(types(after)), count) == (Counter({"Conv": 2, "Add": 1}), 2)
    assert_same(before, after, x)


def test_new_weights_do_not_take_the_name_of_others():
    rng = np.random.default_rng(0)
    linear, weights = linear_node(rng, "Conv", "x", "h")
    norm, tables = batch_norm_node(rng, "h", "n")
    rest = helper.make_node("Add", ["n", "n_weight"], ["y"])
    tables["n_weight"] = table(rng, 1, CHANNELS, 5, 4)
    x = input_of(rng, "Conv")
    before = model_of([linear, norm, rest], {**weights, **tables}, x.shape)
    after, count = absorb_batch_norm(before)
    assert (types(after), count) == (["Conv", "Add"], 1)
    assert_same(before, after, x)


OPERANDS = {
    "Conv": ([], [1], [CHANNELS, 1, 1], [1, CHANNELS, 1, 1]),
    "ConvTranspose": ([], [CHANNELS, 1, 1]),
    "Gemm": ([], [CHANNELS], [1, CHANNELS]),
}
FORMS = [*itertools.product(("Mul", "Add", "Sub"), (True, False)), ("Div", False)]


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("op", "shape"), [(op, s) for op in OPERANDS for s in OPERANDS[op]])
@pytest.mark.parametrize(("form", "constant_first"), FORMS)
def test_elementwise_constants_per_channel_go_into_their_neighbour(
    form, constant_first, op, shape, is_first
):
    rng = np.random.default_rng(1)
    x = input_of(rng, op)
    linear, weights = linear_node(rng, op, *(("h", "y") if is_first else ("x", "h")))
    source, target = ("x", "h") if is_first else ("h", "y")
    operands = ("c", source) if constant_first else (source, "c")
    mapped = helper.make_node(form, operands, [target])
    nodes = [mapped, linear] if is_first else [linear, mapped]
    before = model_of(nodes, {**weights, "c": table(rng, *shape)}, x.shape)
    after, count = absorb_affine(before)
    stays = op == "ConvTranspose" and is_first and form in ("Add", "Sub")
    assert (len(types(after)), count) == ((2, 0) if stays else (1, 1))
    assert_same(before, after, x)


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
def test_a_factor_beside_matmul_goes_into_its_weights_at_any_rank(rank, is_first):
    rng = np.random.default_rng(2)
    x = rng.standard_normal([2, 3, 4, CHANNELS][-rank:]).astype(np.float32)
    linear, weights = linear_node(rng, "MatMul", *(("h", "y") if is_first else ("x", "h")))
    factor = helper.make_node("Mul", ["c", "x" if is_first else "h"], ["h" if is_first else "y"])
    nodes = [factor, linear] if is_first else [linear, factor]
    before = model_of(nodes, {**weights, "c": table(rng, CHANNELS)}, x.shape)
    after, count = absorb_affine(before)
    assert (types(after), count) == (["MatMul"], 1)
    assert_same(before, after, x)


@pytest.mark.parametrize(
    "shape", [[5, 4], [1, 1, 5, 4], [2, CHANNELS, 1, 1], [1, 1, CHANNELS, 1, 1]]
)
def test_an_operand_that_is_not_per_channel_stays(shape):
    rng = np.random.default_rng(3)
    linear, weights = linear_node(rng, "Conv", "x", "h")
    factor = helper.make_node("Mul", ["h", "c"], ["y"])
    before = model_of([linear, factor], {**weights, "c": table(rng, *shape)}, [2, CHANNELS, 7, 5])
    assert absorb_affine(before) == (before, 0)


def test_an_operand_that_stretches_one_channel_to_many_stays():
    rng = np.random.default_rng(3)
    linear, weights = linear_node(rng, "Conv", "h", "y")
    factor = helper.make_node("Mul", ["x", "c"], ["h"])
    tables = {**weights, "c": table(rng, CHANNELS, 1, 1)}
    before = model_of([factor, linear], tables, [2, 1, 7, 5])
    assert absorb_affine(before) == (before, 0)


def test_weights_that_are_an_input_too_stay_as_they_are():
    rng = np.random.default_rng(0)
    linear, weights = linear_node(rng, "Conv", "x", "h")
    norm, tables = batch_norm_node(rng, "h", "y")
    before = model_of([linear, norm], {**weights, **tables}, [2, CHANNELS, 7, 5])
    shape = weights["h_w"].shape
    before.graph.input.append(helper.make_tensor_value_info("h_w", TensorProto.FLOAT, shape))
    assert absorb_batch_norm(before) == (before, 0)


def test_weights_that_would_leave_float16_stay_as_they_are():
    rng = np.random.default_rng(0)
    linear, weights = linear_node(rng, "Conv", "x", "h")
    factor = helper.make_node("Mul", ["h", "c"], ["y"])
    weights["c"] = np.full(1, 60_000)
    before = model_of([linear, factor], weights, [2, CHANNELS, 7, 5], dtype=np.float16)
    assert absorb_affine(before) == (before, 0)


def test_a_division_by_zero_stays():
    rng = np.random.default_rng(0)
    linear, weights = linear_node(rng, "Conv", "x", "h")
    division = helper.make_node("Div", ["h", "c"], ["y"])
    before = model_of([linear, division], {**weights, "c": np.zeros(1)}, [2, CHANNELS, 7, 5])
    assert absorb_affine(before) == (before, 0)


def test_a_bias_of_gemm_that_differs_from_row_to_row_stays():
    rng = np.random.default_rng(0)
    tables = {"w": table(rng, CHANNELS, CHANNELS), "b": table(rng, 4, 1), "c": table(rng, CHANNELS)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        helper.make_node("Mul", ["h", "c"], ["y"]),
    ]
    before = model_of(nodes, tables, [4, CHANNELS])
    assert absorb_affine(before) == (before, 0)


@st.composite
def chains(draw):
    """Draw a chain of maps around one linear operator, and the input's shape."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    op = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm"]))
    kinds = draw(st.lists(st.sampled_from(["norm", "Mul", "Add", "Sub", "Div"]), max_size=4))
    place = draw(st.integers(0, len(kinds)))
    kinds.insert(place, op)
    names = ["x", *(f"t{i}" for i in range(len(kinds) - 1)), "y"]
    nodes, tables = [], {}
    for kind, source, target in zip(kinds, names[:-1], names[1:], strict=True):
        if kind == op:
            padded = draw(st.booleans())
            groups = draw(st.sampled_from([1, 2, 3]))
            node, made = linear_node(rng, op, source, target, padded=padded, groups=groups)
        elif kind == "norm":
            node, made = batch_norm_node(rng, source, target)
        else:
            shape = [1, CHANNELS, 1, 1] if op.startswith("Conv") else [1, CHANNELS]
            made = {f"{target}_c": table(rng, *shape)}
            node = helper.make_node(kind, [source, *made], [target])
        nodes.append(node)
        tables.update(made)
    x = input_of(rng, op)
    return model_of(nodes, tables, x.shape), x, len(kinds) - 1 - place


@settings(max_examples=60, deadline=None)
@given(chains())
def test_a_chain_of_maps_gives_the_same_numbers_and_none_follows_the_operator(chain):
    before, x, followers = chain
    after, count = absorb_affine(before)
    assert count >= followers
    assert len(after.graph.node) == len(before.graph.node) - count
    assert_same(before, after, x)
