import numpy as np
import pytest
from conftest import RuleMeter
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.machine import machine_scheme
from aigc_compress.meter import NodeTime
from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.operators import with_node_names
from aigc_compress.passes.partition import Border, Operator
from aigc_compress.passes.quantize.static import quantize_static
from aigc_compress.refine import (
    Sensitivity,
    front,
    measure_sensitivity,
    node_operators,
    with_only,
)


def weight(name, *shape, spread=1.0):
    rng = np.random.default_rng(len(name))
    values = rng.normal(0, 1, shape) * np.exp(rng.normal(0, spread, shape))
    return numpy_helper.from_array((values / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name)


def two_convolutions():
    """A plain convolution, and one whose single input holds an outlier that wastes its range."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="tame", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["a", "gain"], ["b"], name="outlier"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="wild", pads=[1, 1, 1, 1]),
    ]
    gain = np.ones((1, 4, 1, 1), np.float32)
    gain[0, 0] = 300.0  # one channel 300 times the others: 8 bits per tensor leave them nothing
    quiet = numpy_helper.to_array(weight("w22", 4, 4, 3, 3, spread=0.1)).copy()
    quiet[:, 0] = 0.0
    constants = [
        weight("w1", 4, 3, 3, 3, spread=0.1),
        numpy_helper.from_array(gain, "gain"),
        numpy_helper.from_array(quiet, "w2"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [info("y", TensorProto.FLOAT, [1, 4, 8, 8])],
        constants,
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture(scope="module")
def context():
    rng = np.random.default_rng(0)
    feeds = tuple({"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(4))
    return Context(feeds[:2], feeds)


STATIC = QuantizeConfig(**{**machine_scheme().settings, "mode": "static"})


def measured(context, **options):
    graph = with_node_names(two_convolutions())
    quantized, _ = quantize_static(graph, STATIC, context)
    return measure_sensitivity(graph, quantized, context, **{"most_seconds": 60, **options})


def test_the_rounding_that_does_the_harm_is_found(context):
    found = measured(context)
    assert set(found.weights) == {"tame", "outlier", "wild"}
    assert set(found.tensors) >= {"x", "b"}
    assert found.tensors["b"] > 100 * found.tensors["x"]  # the outlier wastes its range
    assert found.skipped == ()


def test_the_noise_of_a_split_is_that_of_the_graph_made_of_it(context):
    graph = with_node_names(two_convolutions())
    session = OrtSession(Artifact("onnx", graph), threads=1)
    wanted = [session.run(each) for each in context.calibration]
    found = measured(context)
    for nodes in (["tame"], ["wild"], ["tame", "wild"]):
        config = with_only(STATIC, nodes)
        quantized, _ = quantize_static(graph, config, context)
        made = OrtSession(Artifact("onnx", quantized), threads=1)
        real = lowest_agreement_db(wanted, [made.run(each) for each in context.calibration])
        assert found.simulate(nodes) == pytest.approx(real, abs=1.0)


def test_without_time_roundings_count_as_the_worst_that_was_measured(context):
    found = measured(context, most_seconds=-1)
    assert len(found.skipped) == len(found.tensors) + len(found.weights)
    noise = {*found.tensors.values(), *found.weights.values()}
    assert noise == {np.inf}  # nothing is known: they are trusted with nothing


OPERATORS = [
    Operator("a", ("x",), ("t",), 1.0, 0.5),
    Operator("b", ("t",), ("u",), 1.0, 0.2),
    Operator("c", ("u",), ("y",), 1.0, 0.9),
]
BORDERS = {name: Border(0.01, 0.01) for name in "xtuy"}
NOISE = {"a": 1e-4, "b": 1e-2, "c": 1e-4}


def added_up(nodes):
    return -10 * np.log10(sum(NOISE[name] for name in nodes) or 1e-20)


HARM = Sensitivity({}, NOISE, added_up)


def test_splits_give_up_the_dearest_noise_first():
    points = front(OPERATORS, BORDERS, ["y"], HARM)
    assert [set(each.split.integer) for each in points] == [{"a", "b", "c"}, {"a", "c"}, {"a"}]
    assert [each.agreement_db for each in points] == sorted(each.agreement_db for each in points)
    times = [
        sum(o.integer_ms if o.name in p.split.integer else o.float_ms for o in OPERATORS)
        for p in points
    ]
    assert times == sorted(times)


def test_a_rounded_activation_counts_once_for_all_that_touch_it():
    harm = Sensitivity({"t": 1e-3}, {}, lambda nodes: 30.0 if {"a", "b"} & {*nodes} else 200.0)
    points = front(OPERATORS, BORDERS, ["y"], harm)
    assert [set(each.split.integer) for each in points] == [{"a", "b", "c"}, {"c"}]


def test_times_of_both_forms_are_joined_by_the_tensors_that_nodes_make(context):
    graph = with_node_names(two_convolutions())
    config = with_only(QuantizeConfig(mode="static"), ["tame", "wild"])
    quantized, _ = quantize_static(graph, config, context)
    operators, borders = node_operators(graph, quantized, RuleMeter(), context.check_feeds[0])
    times = {each.name: (each.float_ms, each.integer_ms) for each in operators}
    assert times["tame"] == (1.0, 0.25)
    assert times["wild"] == (1.0, 0.25)
    assert borders["a"] == Border(pytest.approx(1e-4), pytest.approx(1e-4))


def test_the_time_of_what_was_fused_is_that_of_its_first_node(context):
    class Fusing(RuleMeter):
        def profile(self, artifact, feeds):
            told = super().profile(artifact, feeds)
            told.pop("a", None)  # as if Conv and Mul ran as one, called by the output of Mul
            return told

    graph = with_node_names(two_convolutions())
    quantized, _ = quantize_static(graph, STATIC, context)
    operators, _ = node_operators(graph, quantized, Fusing(), context.check_feeds[0])
    assert {each.name: each.float_ms for each in operators} == {"tame": 1, "outlier": 0, "wild": 1}


def test_small_borders_do_not_tell_what_large_ones_take(context):
    class Sized(RuleMeter):
        def profile(self, artifact, feeds):
            told = super().profile(artifact, feeds)
            borders = [n for n, each in told.items() if each.op == "QuantizeLinear"]
            sizes = dict.fromkeys(borders, 10) | dict.fromkeys(borders[-1:], 100_000)
            return told | {n: NodeTime("QuantizeLinear", 0.005, sizes[n]) for n in borders}

    graph = with_node_names(two_convolutions())
    quantized, _ = quantize_static(graph, STATIC, context)
    _, borders = node_operators(graph, quantized, Sized(), context.check_feeds[0])
    assert {round(each.quantize_ms, 6) for each in borders.values()} == {0.005}


def test_what_is_only_named_goes_to_integers_and_nothing_else(context):
    graph = with_node_names(two_convolutions())
    quantized, _ = quantize_static(
        graph, with_only(QuantizeConfig(mode="static"), ["tame"]), context
    )
    makers = {out: node.op_type for node in quantized.graph.node for out in node.output}
    by_name = {node.name: node for node in quantized.graph.node}
    assert makers[by_name["tame"].input[1]] == "DequantizeLinear"
    assert by_name["wild"].input[1] == "w2"


def test_noise_that_was_measured_before_is_not_measured_again(context):
    kept = []
    known = {"weights of tame": 0.25}
    found = measured(context, known=known, keep=lambda noise: kept.append(dict(noise)))
    assert found.weights["tame"] == 0.25
    assert len(kept[-1]) == len(found.tensors) + len(found.weights)
