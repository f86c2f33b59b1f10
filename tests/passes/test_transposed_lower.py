"""Whole graphs: which ConvTransposes are replaced, and which are left alone."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from transposed_graphs import lower, model_of, two_layers, types, up, whole_numbers

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import sqnr_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.loading import load_artifact
from aigc_compress.passes import Context, ExportConfig
from aigc_compress.passes.export import ExportPass
from aigc_compress.passes.fold import FoldConfig, FoldPass


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
