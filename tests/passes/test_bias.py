"""Bias correction against plain means of both graphs' layers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError, UsageError
from aigc_compress.passes.bias import correct_biases
from aigc_compress.passes.operators import operators_at_run_time
from aigc_compress.passes.ranges import calibrate, choose_ranges, to_tensors_data

PADS = [1, 1, 1, 1]


def tables(model):
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def model(nodes, shapes, x_shape, *, outputs=("y",), seed=0):
    rng = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(rng.normal(0.05, 0.3, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def chain():
    """Two convolutions beside each other, a third behind both, and a Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=PADS, name="conv1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["x", "w2", "b2"], ["c2"], pads=PADS, name="conv2"),
        helper.make_node("Add", ["r1", "c2"], ["a"], name="add"),
        helper.make_node("Conv", ["a", "w3", "b3"], ["c3"], pads=PADS, name="conv3"),
        helper.make_node("Relu", ["c3"], ["r3"], name="relu3"),
        helper.make_node("GlobalAveragePool", ["r3"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], transB=1, name="gemm"),
    ]
    shapes = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (6, 3, 3, 3), "b2": (6,)}
    shapes |= {"w3": (8, 6, 3, 3), "b3": (8,), "w4": (5, 8), "b4": (5,)}
    return model(nodes, shapes, ["N", 3, 8, 8])


def feeds_of(shape, count=20, seed=1):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def quantize(net, feeds, **options):
    """Return the INT8 graph with inner ranges clipped to 0.7 of what was seen, so means move."""
    ranges = choose_ranges(calibrate(net, feeds), method="minmax")
    data = to_tensors_data(ranges)
    for name in data:
        if name not in ("x", "y"):
            data[name].highest = data[name].highest * np.float32(0.7)
    copy = onnx.ModelProto()
    copy.CopyFrom(net)
    weights = QuantType.QInt8
    operators = ["Conv", "Gemm", "Add", "Relu", "GlobalAveragePool"]
    quantizer = QDQQuantizer(
        copy, True, True, weights, QuantType.QUInt8, data, [], [], operators, options
    )
    quantizer.quantize_model()
    return quantizer.model.model


def outputs_of(model, names, feeds):
    """Return the named tensors over all feeds, by a session without optimizations of its own."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    present = {each.name for each in probe.graph.output}
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in present
    )
    session = OrtSession(Artifact("onnx", probe), threads=1)
    found = [session.run(each) for each in feeds]
    return {name: np.concatenate([each[name] for each in found]) for name in names}


def layer_outputs(model):
    return {node.name: node.output[0] for node in model.graph.node if node.op_type in KINDS}


KINDS = ("Conv", "Gemm", "ConvTranspose")


def mean_errors(before, after, feeds):
    """Return by layer the mean error of each channel that a Relu hands on, in float64."""
    names = layer_outputs(before), layer_outputs(after)
    relus = {"conv1": "r1", "conv3": "r3"}
    passed = outputs_of(before, list(relus.values()), feeds)
    found = [
        outputs_of(each, list(of.values()), feeds)
        for each, of in zip((before, after), names, strict=True)
    ]
    errors = {}
    for layer in names[0]:
        error = found[1][names[1][layer]].astype(float) - found[0][names[0][layer]]
        if layer in relus:
            error[passed[relus[layer]] == 0] = np.nan
        errors[layer] = np.nanmean(error, axis=(0, *range(2, error.ndim)))
    return errors


def bias_steps(quantized):
    """Return by layer the value of one unit of its int32 bias."""
    stored = tables(quantized)
    makers = {node.output[0]: node for node in quantized.graph.node}
    layers = [node for node in quantized.graph.node if node.op_type in KINDS]
    return {node.name: stored[makers[node.input[2]].input[1]] for node in layers}


def test_no_layer_keeps_a_mean_error_above_half_a_unit_of_its_bias():
    net, feeds = chain(), feeds_of((4, 3, 8, 8))
    quantized = quantize(net, feeds)
    corrected, _ = correct_biases(net, quantized, feeds)
    before = mean_errors(net, quantized, feeds)
    after = mean_errors(net, corrected, feeds)
    for layer, step in bias_steps(corrected).items():
        # Beside half a unit there are float32's own roundings of sums of some ten numbers.
        assert (np.abs(after[layer]) <= 0.5 * step + 1e-5).all()
    for layer in ("conv3", "gemm"):  # behind clipped activations
        assert np.abs(after[layer]).max() < 0.1 * np.abs(before[layer]).max()


def test_correction_brings_unseen_outputs_closer_and_keeps_integers():
    net, feeds = chain(), feeds_of((4, 3, 8, 8))
    quantized = quantize(net, feeds)
    corrected, _ = correct_biases(net, quantized, feeds)
    unseen = feeds_of((4, 3, 8, 8), seed=2)
    before, after = (mean_errors(net, each, unseen)["gemm"] for each in (quantized, corrected))
    assert np.abs(after).max() < 0.5 * np.abs(before).max()
    wanted, raw, better = (
        [outputs_of(each, ["y"], unseen)] for each in (net, quantized, corrected)
    )
    assert lowest_agreement_db(wanted, better) > lowest_agreement_db(wanted, raw)
    kinds = [operators_at_run_time(each)["int8"] for each in (quantized, corrected)]
    assert kinds[0] == kinds[1]
    assert kinds[1]["QLinearConv"] == 3


BEHIND = {
    "Relu": ([helper.make_node("Relu", ["c"], ["y"])], lambda c, x: c > 0),
    "Clip": (
        [helper.make_node("Clip", ["c", "low", "high"], ["y"])],
        lambda c, x: (c > 0) & (c < 1),
    ),
    "Add, then Relu": (
        [helper.make_node("Add", ["c", "x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])],
        lambda c, x: c + x > 0,
    ),
    "nothing": ([helper.make_node("Identity", ["c"], ["y"])], lambda c, x: c == c),
    "a second reader": (
        [helper.make_node("Relu", ["c"], ["r"]), helper.make_node("Add", ["r", "c"], ["y"])],
        lambda c, x: c == c,
    ),
}


@pytest.mark.parametrize("case", BEHIND)
def test_only_what_an_activation_hands_on_counts(case):
    nodes, is_handed_on = BEHIND[case]
    conv = helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv")
    net = model([conv, *nodes], {"w": (3, 3, 1, 1), "b": (3,)}, [4, 3, 5, 5])
    net.graph.initializer.extend(
        numpy_helper.from_array(np.float32(value), name)
        for name, value in (("low", 0), ("high", 1))
    )
    changed = onnx.ModelProto()
    changed.CopyFrom(net)
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(tables(net)["w"] * 1.5, "w"))
    (feeds,) = feeds_of((4, 3, 5, 5), count=1)
    corrected, layers = correct_biases(net, changed, [feeds])
    assert layers == ("conv",)
    product = np.einsum("oi,nihw->nohw", tables(net)["w"][..., 0, 0], feeds["x"])
    output = product + tables(net)["b"].reshape(1, 3, 1, 1)
    error = np.where(is_handed_on(output, feeds["x"]), 0.5 * product, np.nan)
    shift = -np.nanmean(error, axis=(0, 2, 3))
    # float32 sums of some hundred numbers near 1
    np.testing.assert_allclose(tables(corrected)["b"], tables(net)["b"] + shift, atol=1e-5)


def test_only_biases_change_and_the_given_graphs_stay_as_they_were():
    net, feeds = chain(), feeds_of((4, 3, 8, 8))
    quantized = quantize(net, feeds)
    bytes_before = net.SerializeToString(), quantized.SerializeToString()
    corrected, _ = correct_biases(net, quantized, feeds)
    assert (net.SerializeToString(), quantized.SerializeToString()) == bytes_before
    old, new = tables(quantized), tables(corrected)
    assert set(old) == set(new)
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {f"b{index}_quantized" for index in (1, 2, 3, 4)}
    assert all(new[name].dtype == np.int32 for name in changed)
    onnx.checker.check_model(corrected)


def test_biases_that_stay_floats_are_shifted_too():
    net, feeds = chain(), feeds_of((4, 3, 8, 8))
    quantized = quantize(net, feeds, QuantizeBias=False)
    assert tables(quantized)["b1"].dtype == np.float32
    corrected, _ = correct_biases(net, quantized, feeds)
    for error in mean_errors(net, corrected, feeds).values():
        # ONNX Runtime itself rounds them to int32 where it loads the graph, in steps below 1e-3.
        assert np.abs(error).max() < 5e-4


def test_layers_without_names_pair_up_as_the_quantize_pass_names_them():
    net, feeds = chain(), feeds_of((4, 3, 8, 8))
    quantized = quantize(net, feeds)
    for index, node in enumerate(net.graph.node):
        if node.op_type == "Conv":
            partner = next(each for each in quantized.graph.node if each.name == node.name)
            node.name, partner.name = "", f"Conv__{index}"
    corrected = tables(correct_biases(net, quantized, feeds)[0])
    assert not np.array_equal(corrected["b1_quantized"], tables(quantized)["b1_quantized"])


def gemm_net(**attributes):
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="gemm", **attributes)]
    return model(nodes, {"w": (6, 4), "b": (1, 4)}, ["N", 6])


def test_the_factor_of_a_gemm_on_its_bias_is_respected():
    net, feeds = gemm_net(beta=0.5, alpha=2.0), feeds_of((8, 6))
    shifted = onnx.ModelProto()
    shifted.CopyFrom(net)
    error = np.float32([0.5, -1, 0, 2])
    moved = numpy_helper.from_array(tables(net)["b"] + error, "b")
    shifted.graph.initializer[1].CopyFrom(moved)
    corrected, _ = correct_biases(net, shifted, feeds)
    np.testing.assert_allclose(tables(corrected)["b"], tables(net)["b"], atol=1e-5)


def test_transposed_convolutions_are_corrected_along_their_output_channels():
    nodes = [helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], name="up")]
    net = model(nodes, {"w": (3, 5, 2, 2), "b": (5,)}, ["N", 3, 4, 4])
    shifted = onnx.ModelProto()
    shifted.CopyFrom(net)
    shifted.graph.initializer[1].CopyFrom(
        numpy_helper.from_array(tables(net)["b"] + np.float32([1, 2, 3, 4, 5]), "b")
    )
    corrected, _ = correct_biases(net, shifted, feeds_of((2, 3, 4, 4)))
    np.testing.assert_allclose(tables(corrected)["b"], tables(net)["b"], atol=1e-5)


@pytest.mark.parametrize("case", ["shared", "computed", "missing", "scalar"])
def test_a_bias_out_of_reach_stays_as_it_is(case):
    conv = {"pads": PADS}
    inputs = {"missing": ["x", "w1"], "computed": ["x", "w1", "made"]}.get(case, ["x", "w1", "b"])
    nodes = [
        helper.make_node("Add", ["b", "b"], ["made"], name="add"),
        helper.make_node("Conv", inputs, ["c1"], name="conv1", **conv),
        helper.make_node("Conv", ["c1", "w2", "b" if case == "shared" else "b2"], ["y"], **conv),
    ]
    shapes = {"w1": (3, 3, 3, 3), "b": (3,), "w2": (3, 3, 3, 3), "b2": (3,)}
    x_shape = [2, 3, 8, 8]
    if case == "scalar":
        nodes = [helper.make_node("Gemm", ["x", "w1", "b"], ["y"], name="gemm")]
        shapes, x_shape = {"w1": (6, 4), "b": (1,)}, [2, 6]
    net = model(nodes[1:] if case == "shared" else nodes, shapes, x_shape)
    changed = onnx.ModelProto()
    changed.CopyFrom(net)
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(tables(net)["w1"] * 1.5, "w1"))
    corrected, layers = correct_biases(net, changed, feeds_of(x_shape))
    assert not {"conv1", "gemm"} & set(layers)
    assert np.array_equal(tables(corrected)["b"], tables(net)["b"])


def test_feeds_must_be_there_and_last_for_several_runs():
    net = gemm_net()
    with pytest.raises(UsageError, match="several times"):
        correct_biases(net, net, iter(feeds_of((8, 6))))
    with pytest.raises(PassError, match="needs calibration feeds"):
        correct_biases(net, net, [])


def test_progress_counts_one_run_per_stage():
    net, feeds = chain(), feeds_of((4, 3, 8, 8), count=2)
    steps = []
    correct_biases(net, quantize(net, feeds), feeds, on_step=lambda *step: steps.append(step))
    # conv1 and conv2 stand beside each other, then conv3, then the Gemm.
    assert steps == [(1, 3), (2, 3), (3, 3)]
