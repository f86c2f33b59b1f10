"""ConvTranspose as Convs.

ONNX Runtime has no float64 Conv, so the forms are compared on small whole numbers instead: their
products and sums stay far below 2**24, where float32 is exact, so every form must give the very
same numbers, in whatever order a kernel adds them up.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from transposed_graphs import OPSET, model_of, run, scattered, types, whole_numbers

from aigc_compress.passes.transposed import (
    FORMS,
    Axis,
    Geometry,
    Layer,
    multiplications,
    refusal,
    write_form,
)

SPELLINGS = ("depth_to_space", "reshape")


def attributes_of(geometry):
    axes = geometry.axes
    return {
        "strides": [axis.stride for axis in axes],
        "dilations": [axis.dilation for axis in axes],
        "pads": [axis.begin for axis in axes] + [axis.end for axis in axes],
        "output_padding": [axis.output_padding for axis in axes],
        "group": geometry.group,
    }


def weights_of(geometry, *, with_bias=True):
    kernel = [axis.kernel for axis in geometry.axes]
    weight = whole_numbers(geometry.inputs, geometry.outputs // geometry.group, *kernel, seed=1)
    return weight, whole_numbers(geometry.outputs, seed=2) if with_bias else None


def original(geometry, weight, bias, x_shape):
    tables = {"w": weight} | ({} if bias is None else {"b": bias})
    node = helper.make_node("ConvTranspose", ["x", *tables], ["y"], **attributes_of(geometry))
    return model_of([node], tables, x_shape)


def rewritten(form, layer, x_shape, **how):
    draft = write_form(form, layer, prefix="p", source="x", target="y", opset=OPSET, **how)
    stored = {each.name: numpy_helper.to_array(each) for each in draft.constants}
    return model_of(draft.nodes, stored, x_shape)


def applicable(geometry):
    return [form for form in FORMS if refusal(form, geometry, opset=OPSET) is None]


@dataclass(frozen=True)
class Case:
    """A geometry with the sizes of an input."""

    geometry: Geometry
    sizes: tuple[int, ...]
    with_bias: bool = True


@st.composite
def cases(draw):
    sizes = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=2)))
    axes = []
    for _ in sizes:
        stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        pads = draw(st.tuples(st.integers(0, 5), st.integers(0, 5)))
        padding = draw(st.integers(0, max(stride, dilation) - 1))  # ONNX allows no more
        axes.append(Axis(draw(st.integers(1, 6)), stride, dilation, *pads, padding))
    if draw(st.booleans()):
        axes = [axes[0]] * len(sizes)  # DepthToSpace needs equal strides
    group = draw(st.integers(1, 3))
    inputs, outputs = (group * draw(st.integers(1, 3)) for _ in range(2))
    geometry = Geometry(tuple(axes), inputs, outputs, group)
    assume(min(geometry.output_sizes(sizes)) >= 1)
    return Case(geometry, sizes, draw(st.booleans()))


def square(*axis, inputs=2, outputs=3, group=1):
    return Geometry((Axis(*axis),) * 2, inputs, outputs, group)


@settings(max_examples=150, deadline=None)
@given(cases(), st.sets(st.integers(0, 1)))
@example(Case(square(4, 2, 1, 3, 3), (5, 5)), {0, 1})  # more cut off than the kernel hides
@example(Case(square(1, 3), (2, 3)), set())  # phases that no tap reaches
@example(Case(square(3, 2, 2, 1, 0, inputs=4, outputs=4, group=2), (3, 4)), {0, 1})
@example(Case(Geometry((Axis(5, 4, 3, 2, 1, 3),), 3, 3, 3), (6,)), {0})
@example(Case(Geometry((Axis(2, 2, 3, 5, 0),), 1, 1), (2,)), {0})  # a phase beyond all inputs
def test_every_form_computes_the_very_numbers_of_convtranspose(case, dynamic):
    geometry, sizes = case.geometry, case.sizes
    weight, bias = weights_of(geometry, with_bias=case.with_bias)
    x = whole_numbers(2, geometry.inputs, *sizes)
    wanted = scattered(x, weight, bias, geometry)
    if all(axis.output_padding < axis.stride for axis in geometry.axes):  # the rest it refuses
        before = original(geometry, weight, bias, ["N", geometry.inputs, *sizes])
        np.testing.assert_array_equal(run(before, x), wanted)
    known = tuple(None if axis in dynamic else size for axis, size in enumerate(sizes))
    layer = Layer(geometry, weight, bias, known)
    shape = ["N", geometry.inputs, *(size or f"s{axis}" for axis, size in enumerate(known))]
    for form, spelling in itertools.product(applicable(geometry), SPELLINGS):
        precision = "integer" if spelling == "reshape" else "float"
        found = run(rewritten(form, layer, shape, precision=precision, spelling=spelling), x)
        np.testing.assert_array_equal(found, wanted, err_msg=f"{form}, {spelling}")


@settings(max_examples=200, deadline=None)
@given(cases())
def test_some_form_made_of_convs_applies_to_every_geometry(case):
    assert {"plain", "zero_tap"} & set(applicable(case.geometry))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_multiplications_are_those_of_the_convs_that_were_written(case):
    geometry, sizes = case.geometry, case.sizes
    weight, bias = weights_of(geometry)
    for form in applicable(geometry):
        if form == "gemm":
            continue
        layer = Layer(geometry, weight, bias, sizes)
        model = rewritten(form, layer, [1, geometry.inputs, *sizes])
        shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*model.graph.value_info, *model.graph.output)
        }
        weights = {each.name: each.dims for each in model.graph.initializer}
        convs = [node for node in model.graph.node if node.op_type == "Conv"]
        total = sum(
            np.prod(shapes[node.output[0]]) * np.prod(weights[node.input[1]][1:]) for node in convs
        )
        assert multiplications(form, geometry, sizes) == total


@pytest.mark.parametrize("form", ["zero_tap", "crop", "phases", "gemm"])
@pytest.mark.parametrize("precision", ["float", "integer"])
def test_dynamic_axes_stay_dynamic_and_work_at_other_sizes(form, precision):
    geometry = square(4, 2, 1, 1, 1, inputs=4, outputs=6, group=2)
    weight, bias = weights_of(geometry)
    layer = Layer(geometry, weight, bias, (None, None))
    after = rewritten(form, layer, ["N", 4, "H", "W"], precision=precision)
    before = original(geometry, weight, bias, ["N", 4, "H", "W"])
    for shape in ((1, 4, 3, 8), (3, 4, 9, 2)):
        x = whole_numbers(*shape)
        np.testing.assert_array_equal(run(after, x), run(before, x))


def test_one_known_size_is_enough_for_the_other_to_stay_dynamic():
    geometry = square(3, 2)
    weight, bias = weights_of(geometry)
    for known, shapes in (((4, None), [(2, 2, 4, 3), (2, 2, 4, 7)]), ((None, 4), [(2, 2, 7, 4)])):
        layer = Layer(geometry, weight, bias, known)
        after = rewritten("phases", layer, ["N", 2, "H", "W"], spelling="reshape")
        assert types(after).count("Transpose") == 3
        for shape in shapes:
            x = whole_numbers(*shape)
            np.testing.assert_array_equal(run(after, x), scattered(x, weight, bias, geometry))


@pytest.mark.parametrize(
    ("axis", "form", "wanted"),
    [
        (Axis(5, 1, 1, 2, 2), "plain", ["Conv"]),
        (Axis(5, 2, 1, 2, 2, 1), "zero_tap", ["Conv", "DepthToSpace"]),
        (Axis(4, 2, 1, 1, 1), "zero_tap", ["Conv", "DepthToSpace"]),
        (Axis(4, 2, 1, 1, 1), "crop", ["Conv", "DepthToSpace", "Slice"]),
        (Axis(5, 2, 1, 2, 2, 1), "phases", ["Conv"] * 4 + ["Concat", "DepthToSpace"]),
        (Axis(5, 2, 1, 2, 2, 1), "gemm", ["Reshape", "MatMul", "Col2Im", "Add"]),
    ],
)
def test_forms_of_common_layers_hold_no_operator_more_than_they_need(axis, form, wanted):
    geometry = Geometry((axis, axis), 2, 3)
    layer = Layer(geometry, *weights_of(geometry), (7, 7))
    after = rewritten(form, layer, ["N", 2, 7, 7], spelling="depth_to_space")
    assert types(after) == wanted


def test_kernels_hold_as_many_positions_as_their_form_promises():
    geometry = square(4, 2, 1, 1, 1)
    layer = Layer(geometry, *weights_of(geometry), (7, 7))
    for form, kernels in (("zero_tap", [(3, 3)]), ("crop", [(2, 2)]), ("phases", [(2, 2)] * 4)):
        after = rewritten(form, layer, ["N", 2, 7, 7])
        stored = {each.name: tuple(each.dims[2:]) for each in after.graph.initializer}
        convs = [node for node in after.graph.node if node.op_type == "Conv"]
        assert [stored[node.input[1]] for node in convs] == kernels


@pytest.mark.parametrize(
    ("form", "axis", "opset", "reason"),
    [
        ("plain", Axis(3, 2), 18, "strides are [2, 2]"),
        ("zero_tap", Axis(3, 1), 18, "plain Conv"),
        ("crop", Axis(5, 2, 1, 2, 2, 1), 18, "no crop gives a smaller kernel"),
        ("phases", Axis(8, 5), 18, "25 Convs"),
        ("gemm", Axis(3, 2), 17, "since opset 18"),
        ("gemm", Axis(3, 2, 3, 0, 0, 2), 18, "output_padding"),
        ("gemm", Axis(3, 2, 1, -1, 0), 18, "negative pads"),
    ],
)
def test_a_form_that_does_not_apply_says_why(form, axis, opset, reason):
    assert reason in refusal(form, Geometry((axis, axis), 1, 1), opset=opset)


def test_gemm_is_refused_where_onnxruntime_adds_columns_up_wrongly():
    geometry = Geometry((Axis(3, 2, 2),), 1, 1)
    assert "dilated" in refusal("gemm", geometry, opset=OPSET)
