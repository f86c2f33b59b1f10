import numpy as np
import pytest
from conftest import RuleMeter
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.operators import with_node_names
from aigc_compress.passes.partition import Border, Operator
from aigc_compress.passes.quantize.static import quantize_static
from aigc_compress.refine import (
    Sensitivity,
    measure_sensitivity,
    node_operators,
    splits,
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


def test_the_node_that_does_the_harm_is_found(context):
    found = measure_sensitivity(
        two_convolutions(), QuantizeConfig(mode="static"), context, most_seconds=60
    )
    assert set(found.noise) >= {"tame", "wild"}
    assert found.noise["wild"] > 100 * found.noise["tame"]
    assert found.skipped == ()


def test_without_time_nodes_count_as_the_worst_that_was_measured(context):
    found = measure_sensitivity(
        two_convolutions(), QuantizeConfig(mode="static"), context, most_seconds=0
    )
    assert set(found.skipped) == set(found.noise)
    assert set(found.noise.values()) == {np.inf}  # nothing is known: they are trusted with nothing


OPERATORS = [
    Operator("a", ("x",), ("t",), 1.0, 0.5),
    Operator("b", ("t",), ("u",), 1.0, 0.2),
    Operator("c", ("u",), ("y",), 1.0, 0.9),
]
BORDERS = {name: Border(0.01, 0.01) for name in "xtuy"}
HARM = Sensitivity({"a": 1e-4, "b": 1e-2, "c": 1e-4})


def test_a_target_is_met_by_giving_up_the_dearest_noise():
    found = dict(splits(OPERATORS, BORDERS, ["y"], HARM, targets_db=(15.0, 28.0, 39.0)))
    assert found[None].integer == {"a", "b", "c"}
    assert 15.0 not in found  # 1.02e-2 in all is within 3.2e-2: the fastest meets it already
    assert found[28.0].integer == {"a", "c"}  # 2e-4, allowed 1.6e-3
    assert found[39.0].integer == {"a"}  # 1e-4, allowed 1.26e-4


def test_without_harm_there_is_the_fastest_split_alone():
    ((target, split),) = splits(OPERATORS, BORDERS, ["y"], None, targets_db=(40.0,))
    assert target is None
    assert split.milliseconds == pytest.approx(0.5 + 0.2 + 0.9 + 0.02)


def test_times_of_both_forms_are_joined_by_the_tensors_that_nodes_make(context):
    graph = with_node_names(two_convolutions())
    config = with_only(QuantizeConfig(mode="static"), ["tame", "wild"])
    quantized, _ = quantize_static(graph, config, context)
    operators, borders = node_operators(graph, quantized, RuleMeter(), context.check_feeds[0])
    times = {each.name: (each.float_ms, each.integer_ms) for each in operators}
    assert times["tame"] == (1.0, 0.25)
    assert times["wild"] == (1.0, 0.25)
    assert borders["a"] == Border(pytest.approx(1e-4), pytest.approx(1e-4))


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
    found = measure_sensitivity(
        two_convolutions(),
        QuantizeConfig(mode="static"),
        context,
        most_seconds=60,
        known={"tame": 0.25},
        keep=lambda noise: kept.append(dict(noise)),
    )
    assert found.noise["tame"] == 0.25
    assert kept[-1] == found.noise
