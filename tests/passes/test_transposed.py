"""ConvTranspose as Convs.

ONNX Runtime has no float64 Conv, so the forms are compared on small whole numbers instead: their
products and sums stay far below 2**24, where float32 is exact, so every form must give the very
same numbers, in whatever order a kernel adds them up.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import sqnr_db
from aigc_compress.engines.ort import OrtSession, optimized
from aigc_compress.errors import PassError, StoppedError
from aigc_compress.loading import load_artifact
from aigc_compress.passes import Context, ExportConfig
from aigc_compress.passes.export import ExportPass
from aigc_compress.passes.fold import FoldConfig, FoldPass
from aigc_compress.passes.transposed import (
    FORMS,
    Axis,
    Geometry,
    Layer,
    LowerConfig,
    LowerPass,
    multiplications,
    read_geometry,
    refusal,
    write_form,
)

OPSET = 18
SPELLINGS = ("depth_to_space", "reshape")


def whole_numbers(*shape, seed=0):
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float32)


def scattered(x, weight, bias, geometry):
    """Return the transposed convolution in float64, every product scattered to where it belongs."""
    axes, group = geometry.axes, geometry.group
    full = [
        axis.stride * (size - 1) + axis.reach for axis, size in zip(axes, x.shape[2:], strict=True)
    ]
    room = [
        max(0, -axis.begin) + size + max(0, -axis.end) + axis.output_padding
        for axis, size in zip(axes, full, strict=True)
    ]
    y = np.zeros((x.shape[0], geometry.outputs, *room))
    parts = np.split(x.astype(np.float64), group, axis=1), np.split(weight, group, axis=0)
    for place in np.ndindex(*x.shape[2:]):
        made = [np.tensordot(a[:, :, *place], w, 1) for a, w in zip(*parts, strict=True)]
        made = np.concatenate(made, axis=1)
        for tap in np.ndindex(*weight.shape[2:]):
            where = [
                axis.stride * i + axis.dilation * t + max(0, -axis.begin)
                for axis, i, t in zip(axes, place, tap, strict=True)
            ]
            y[:, :, *where] += made[:, :, *tap]
    cuts = [slice(max(0, axis.begin), None) for axis in axes]
    ends = [
        slice(0, axis.stride * size + axis.growth)
        for axis, size in zip(axes, x.shape[2:], strict=True)
    ]
    y = y[:, :, *cuts][:, :, *ends]
    return y if bias is None else y + bias.reshape(-1, *[1] * len(axes))


def model_of(nodes, constants, x_shape, *, opset=OPSET, extra_outputs=(), extra_inputs=()):
    def face(*names):
        shapes = {"x": x_shape} | {name: table.shape for name, table in constants.items()}
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes.get(name))
            for name in names
        ]

    graph = helper.make_graph(
        nodes,
        "g",
        face("x", *extra_inputs),
        face("y", *extra_outputs),
        [numpy_helper.from_array(each, name) for name, each in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


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


def run(model, x):
    return OrtSession(Artifact("onnx", model), threads=1).run({"x": x})["y"]


def types(model):
    return [node.op_type for node in model.graph.node]


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


def same_size(x_size, axis):
    """Return (begin, end) for an output of stride times the input, as the operator text says."""
    total = axis.stride * (x_size - 1) + axis.output_padding + axis.reach - axis.stride * x_size
    return total // 2, total - total // 2


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_auto_pad_is_read_as_onnxruntime_reads_it(mode, kernel):
    weight, x = whole_numbers(2, 3, kernel, kernel, seed=1), whole_numbers(1, 2, 5, 6)
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], auto_pad=mode, strides=[2, 2], output_padding=[1, 1]
    )
    geometry = read_geometry(node, weight.shape)
    wanted = run(model_of([node], {"w": weight}, ["N", 2, 5, 6]), x)
    np.testing.assert_array_equal(scattered(x, weight, None, geometry), wanted)
    if mode.startswith("SAME"):
        less, more = same_size(5, geometry.axes[0])
        wanted_pads = (less, more) if mode == "SAME_UPPER" else (more, less)
        assert (geometry.axes[0].begin, geometry.axes[0].end) == wanted_pads


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "NOTSET"])
@pytest.mark.parametrize("output_shape", [[9, 11], [8, 12]])
def test_output_shape_becomes_pads_as_in_onnxruntime(mode, output_shape):
    weight, x = whole_numbers(3, 2, 4, 5, seed=1), whole_numbers(1, 3, 5, 6)
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], auto_pad=mode, strides=[2, 2], output_shape=output_shape
    )
    geometry = read_geometry(node, weight.shape, (5, 6))
    wanted = run(model_of([node], {"w": weight}, ["N", 3, 5, 6]), x)
    np.testing.assert_array_equal(scattered(x, weight, None, geometry), wanted)
    assert "size of its input is not known" in read_geometry(node, weight.shape, (5, None))


@pytest.mark.parametrize(
    ("attributes", "shape", "reason"),
    [
        ({}, (2, 3, 3, 3, 3), "3 spatial axes"),
        ({}, (2, 3), "0 spatial axes"),
        ({"group": 3}, (2, 3, 3), "group is 3"),
        ({"strides": [2]}, (2, 3, 3, 3), "strides has 1 entries; it must have 2"),
        ({"kernel_shape": [5]}, (2, 3, 3), r"kernel_shape is [5]"),
        ({"auto_pad": "SAME"}, (2, 3, 3), "auto_pad is SAME"),
        ({"auto_pad": "SAME_UPPER", "strides": [3]}, (2, 3, 1), "larger than its taps reach"),
        ({"strides": [0]}, (2, 3, 1), "must be at least 1"),
        ({"output_shape": [1, 3, 9]}, (2, 3, 4), "output_shape has 3 entries; it must have 1"),
    ],
)
def test_what_is_not_covered_is_refused_with_the_reason(attributes, shape, reason):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)
    assert reason in read_geometry(node, shape)


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


@dataclass(frozen=True)
class FakeSpeedup:
    ratio: float

    @property
    def verdict(self):
        within = "faster" if self.ratio > 1 else "slower"
        return "no difference shown" if abs(self.ratio - 1) < 0.05 else within


class FakeMeter:
    """Tells by the operators of a graph how fast it is, and notes what it was asked."""

    def __init__(self, **ratios):
        self.ratios, self.asked = ratios, []

    def compare(self, baseline, candidates, feeds):
        self.asked.append((baseline.payload, [each.payload for each in candidates], feeds))
        return [FakeSpeedup(self.ratios[kind_of(each.payload)]) for each in candidates]


def kind_of(model):
    found = types(model)
    if "Col2Im" in found:
        return "gemm"
    if found.count("Conv") > 1:
        return "phases"
    if "Slice" in found:
        return "crop"
    return "zero_tap" if "Reshape" in found or "DepthToSpace" in found else "plain"


def up(source, target, weight="w1", *rest, **attributes):
    settings = {"strides": [2, 2], "pads": [1] * 4} | attributes
    return helper.make_node("ConvTranspose", [source, weight, *rest], [target], **settings)


def two_layers(**changes):
    """Return a graph of two ConvTransposes of one kind with LeakyRelu between, and feeds."""
    nodes = [
        up("x", "h", "w1", "b1"),
        helper.make_node("LeakyRelu", ["h"], ["a"], alpha=0.25),
        helper.make_node("AveragePool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        up("p", "y", "w2", "b1"),
    ]
    tables = {"w1": whole_numbers(4, 4, 4, 4), "w2": whole_numbers(4, 4, 4, 4, seed=3)}
    tables["b1"] = whole_numbers(4, seed=4)
    model = model_of(nodes, tables, ["N", 4, 6, 6], **changes)
    feeds = tuple({"x": whole_numbers(n, 4, 6, 6, seed=n)} for n in (1, 3))
    return Artifact("onnx", model), feeds


def lower(artifact, feeds, meter=None, **config):
    before = artifact.payload.SerializeToString()
    result = LowerPass().run(artifact, LowerConfig(**config), Context(feeds, meter=meter))
    assert artifact.payload.SerializeToString() == before
    onnx.checker.check_model(result.payload, full_check=True)
    for each in feeds:
        wanted, found = (OrtSession(one, threads=1).run(each) for one in (artifact, result))
        for name in wanted:
            assert sqnr_db(wanted[name], found[name]) >= 80
    return result.payload, result.history[-1].numbers["layers"]


RATIOS = {"zero_tap": 0.5, "crop": 1.2, "phases": 1.5, "gemm": 0.9}


@pytest.mark.parametrize("best", RATIOS)
@pytest.mark.parametrize("precision", ["float", "integer"])
def test_the_form_that_the_meter_finds_fastest_is_taken(best, precision):
    artifact, feeds = two_layers()
    meter = FakeMeter(**(RATIOS | {best: 3.0}))
    after, told = lower(artifact, feeds, meter, precision=precision)
    assert {layer["form"] for layer in told.values()} == {best}
    assert told["y"]["ratios"] == RATIOS | {best: 3.0}
    assert "strides are" in told["y"]["refused"]["plain"]
    assert "ConvTranspose" not in types(after)
    assert {each.name for each in after.graph.initializer}.isdisjoint({"w1", "w2", "b1"})


@pytest.mark.parametrize(
    ("precision", "ratio", "form"),
    [
        ("float", 1.2, "crop"),
        ("float", 1.01, "ConvTranspose"),
        ("integer", 1.01, "crop"),
        ("integer", 0.8, "ConvTranspose"),
    ],
)
def test_convtranspose_stays_where_the_best_form_does_not_pay(precision, ratio, form):
    artifact, feeds = two_layers()
    meter = FakeMeter(zero_tap=0.1, crop=ratio, phases=0.1, gemm=0.1)
    after, told = lower(artifact, feeds, meter, precision=precision)
    assert told["h"]["form"] == form
    assert ("reason" in told["h"]) == (form == "ConvTranspose")
    assert ("ConvTranspose" in types(after)) == (form == "ConvTranspose")


def test_layers_of_one_kind_are_timed_once_at_the_shapes_that_they_see():
    artifact, feeds = two_layers()
    meter = FakeMeter(**RATIOS)
    lower(artifact, feeds, meter)
    ((baseline, candidates, seen),) = meter.asked
    np.testing.assert_array_equal(seen["x"], feeds[0]["x"])
    assert types(baseline) == ["ConvTranspose"]
    for each in candidates:
        np.testing.assert_array_equal(run(each, seen["x"]), run(baseline, seen["x"]))


def test_forms_are_timed_on_integers_where_integers_are_wanted():
    artifact, feeds = two_layers()
    meter = FakeMeter(**RATIOS)
    lower(artifact, feeds, meter, precision="integer")
    ((baseline, candidates, seen),) = meter.asked
    wanted = run(baseline, seen["x"])
    for each in candidates:
        at_run_time = types(optimized(each))
        integers = {"QLinearConv", "QLinearMatMul"} & set(at_run_time)
        assert integers
        assert not {"Conv", "FusedConv", "MatMul"} & set(at_run_time)
        borders = at_run_time.count("QuantizeLinear"), at_run_time.count("DequantizeLinear")
        assert borders == ((2, 2) if "Col2Im" in at_run_time else (1, 1))
        assert sqnr_db(wanted, run(each, seen["x"])) > 25  # 8 bits resolve 30 to 40 dB


def test_without_a_meter_the_fewest_multiplications_decide():
    artifact, feeds = two_layers()
    _, told = lower(artifact, feeds)
    # Kernel 4, stride 2 at 6x6: crop makes 7x7 blocks of 16 taps, phases 6x6 of 16, zero_tap of 36.
    assert told["h"] == told["y"]
    assert told["h"]["form"] == "phases"
    assert told["h"]["ratios"] == {}


def test_a_named_form_is_taken_without_asking_the_meter():
    artifact, feeds = two_layers()
    meter = FakeMeter(**RATIOS)
    _, told = lower(artifact, feeds, meter, form="zero_tap")
    assert {layer["form"] for layer in told.values()} == {"zero_tap"}
    assert meter.asked == []


def test_where_a_named_form_does_not_apply_another_is_taken_and_the_reason_told():
    artifact, feeds = two_layers(opset=17)
    _, told = lower(artifact, feeds, form="gemm")
    assert told["h"]["form"] == "phases"
    assert "opset 18" in told["h"]["refused"]["gemm"]


def test_a_meter_that_fails_leaves_the_choice_to_multiplications():
    class Broken:
        def compare(self, *_):
            raise PassError("no timer")

    artifact, feeds = two_layers()
    _, told = lower(artifact, feeds, Broken())
    assert told["h"]["form"] == "phases"
    assert told["h"]["refused"]["crop"] == "not timed: no timer"


def test_an_interruption_while_timing_goes_through():
    class Interrupted:
        def compare(self, *_):
            raise StoppedError("stopped")

    artifact, feeds = two_layers()
    with pytest.raises(StoppedError):
        LowerPass().run(artifact, LowerConfig(), Context(feeds, meter=Interrupted()))


def test_a_replacement_that_changes_the_numbers_is_taken_back(monkeypatch):
    def double(form, layer, **how):
        wrong = Layer(layer.geometry, layer.weight * 2, layer.bias, layer.sizes)
        return write_form(form, wrong if how["target"] == "h" else layer, **how)

    monkeypatch.setattr("aigc_compress.passes.transposed.lower.write_form", double)
    artifact, feeds = two_layers()
    after, told = lower(artifact, feeds)
    assert told["h"]["form"] == "ConvTranspose"
    assert "agree to" in told["h"]["reason"]
    assert told["y"]["form"] == "phases"
    assert types(after).count("ConvTranspose") == 1


def left_alone(nodes, tables, reason, x_shape=("N", 4, 6, 6), **faces):
    model = model_of(nodes, tables, list(x_shape), **faces)
    feeds = ({"x": whole_numbers(*[2 if n == "N" else n for n in x_shape])},)
    after, told = lower(Artifact("onnx", model), feeds)
    assert after == model
    assert all(reason in layer["reason"] for layer in told.values())
    assert {layer["form"] for layer in told.values()} == {"ConvTranspose"}


W = {"w1": whole_numbers(4, 4, 4, 4)}


def test_shared_weights_are_left_alone():
    nodes = [up("x", "h"), up("h", "y")]
    left_alone(nodes, W, "shared")


def test_weights_that_are_an_output_are_left_alone():
    left_alone([up("x", "y")], W, "output of the graph", extra_outputs=["w1"])


def test_weights_that_a_caller_may_set_are_left_alone():
    left_alone([up("x", "y")], W, "caller may set", extra_inputs=["w1"])


def test_computed_weights_and_biases_are_left_alone():
    neg = helper.make_node("Neg", ["w0"], ["w1"])
    left_alone([neg, up("x", "y")], {"w0": W["w1"]}, "its weights are computed")
    neg = helper.make_node("Neg", ["b0"], ["b"])
    nodes = [neg, up("x", "y", "w1", "b")]
    left_alone(nodes, W | {"b0": whole_numbers(4)}, "its bias are computed")


def test_three_spatial_axes_are_left_alone():
    node = helper.make_node("ConvTranspose", ["x", "w1"], ["y"])
    left_alone([node], {"w1": whole_numbers(2, 2, 2, 2, 2)}, "3 spatial axes", (1, 2, 3, 3, 3))


def test_a_layer_inside_a_branch_is_left_alone_and_one_beside_it_is_not():
    tables = W | {"w2": whole_numbers(4, 4, 4, 4, seed=5), "on": np.array(True)}
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    branches = {
        name: helper.make_graph([up("h", "out", "w2")], name, [], [out])
        for name in ("then_branch", "else_branch")
    }
    nodes = [up("x", "h"), helper.make_node("If", ["on"], ["y"], **branches)]
    model = Artifact("onnx", model_of(nodes, tables, ["N", 4, 3, 3]))
    after, told = lower(model, ({"x": whole_numbers(1, 4, 3, 3)},))
    assert told["h"]["form"] == "phases"
    assert "inside an If" in told["out"]["reason"]
    assert types(after)[-1] == "If"


def test_names_that_the_graph_has_already_are_not_taken_twice():
    nodes = [
        helper.make_node("Neg", ["x"], ["y_phases_Conv_0"]),
        up("y_phases_Conv_0", "y"),
    ]
    model = Artifact("onnx", model_of(nodes, W, ["N", 4, 6, 6]))
    after, told = lower(model, ({"x": whole_numbers(1, 4, 6, 6)},))
    made = [name for node in after.graph.node for name in node.output]
    assert len(made) == len(set(made))
    assert told["y"]["form"] == "phases"


def test_a_graph_without_convtranspose_stays_as_it_is():
    model = model_of([helper.make_node("Neg", ["x"], ["y"])], {}, ["N", 2])
    after, told = lower(Artifact("onnx", model), ({"x": whole_numbers(1, 2)},))
    assert after == model
    assert told == {}


def test_lowering_twice_gives_the_same_bytes():
    artifact, feeds = two_layers()
    first, second = (lower(artifact, feeds)[0].SerializeToString() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("precision", ["float", "integer"])
def test_the_reference_gan_lowers_fully_and_stays_the_same(precision):
    rng = np.random.default_rng(0)
    feeds = tuple({"z": rng.standard_normal((n, 100)).astype(np.float32)} for n in (1, 3))
    context = Context(feeds)
    config = ExportConfig(dynamic_axes={"z": {0: "batch"}})
    exported = ExportPass().run(load_artifact("gan"), config, context)
    folded = FoldPass().run(exported, FoldConfig(), context)
    after, told = lower(folded, feeds, precision=precision)
    assert [layer["form"] for layer in told.values()] == ["plain", "phases", "phases"]
    assert "ConvTranspose" not in types(after)
    assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert after.graph.output == folded.payload.graph.output
    five = {"z": rng.standard_normal((5, 100)).astype(np.float32)}
    found = OrtSession(Artifact("onnx", after), threads=1).run(five)
    wanted = OrtSession(folded, threads=1).run(five)
    for name in wanted:
        assert sqnr_db(wanted[name], found[name]) >= 80
