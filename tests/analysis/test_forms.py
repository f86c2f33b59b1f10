"""Weights alone, activations alone, and both, for any set of layers."""

import numpy as np
import pytest
from analysis_graphs import convolutions, forms_of, normal, outputs, product, rounded, two_lstms
from onnx import numpy_helper


def constant(model, node_name, place):
    node = next(each for each in model.graph.node if each.name == node_name)
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    return arrays[node.input[place]]


def stored(model, node_name):
    """Return the weights that a file of integers stands for: (integers - zero point) * scale."""
    node = next(each for each in model.graph.node if each.name.startswith(node_name))
    tables = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    made = next(each for each in model.graph.node if each.output[0] == node.input[1])
    integers, scale, zero_point = (tables[name] for name in made.input)
    assert not zero_point.any()
    return integers * scale.reshape(-1, *[1] * (integers.ndim - 1))


@pytest.mark.parametrize("is_reduced", [False, True])
def test_weights_alone_are_those_that_the_file_stores(is_reduced):
    forms = convolutions(reduce_range=is_reduced)
    model = forms.weights(forms.everything)
    found = constant(model, "tame", 1)
    np.testing.assert_allclose(found, stored(forms.integers(forms.everything), "tame"), rtol=1e-6)
    if not is_reduced:
        original = numpy_helper.to_array(forms.graph.graph.initializer[0])
        np.testing.assert_allclose(found, rounded(original), atol=1e-6)
    assert not any("Linear" in node.op_type for node in model.graph.node)


def test_weights_of_other_layers_stay():
    forms = convolutions()
    model = forms.weights(forms.sites[0].nodes)
    original = {each.name: numpy_helper.to_array(each) for each in forms.graph.graph.initializer}
    np.testing.assert_array_equal(constant(model, "wild", 1), original["w2"])
    assert (constant(model, "tame", 1) != original["w1"]).any()


def test_activations_alone_keep_the_weights_of_floats():
    forms = convolutions()
    model = forms.activations(forms.everything)
    original = {each.name: numpy_helper.to_array(each) for each in forms.graph.graph.initializer}
    for node, place, name in (("tame", 1, "w1"), ("tame", 2, "b1"), ("wild", 1, "w2")):
        np.testing.assert_array_equal(constant(model, node, place), original[name])
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def test_one_lstm_of_two_can_be_integer():
    forms = forms_of(two_lstms(), 3, 2, 6)
    model = forms.integers(forms.sites[1].nodes)
    kinds = {node.name: node.op_type for node in model.graph.node}
    assert kinds["first"] == "LSTM"
    assert [kind for kind in kinds.values() if "LSTM" in kind] == ["LSTM", "DynamicQuantizeLSTM"]
    assert all(node.domain in ("", "com.microsoft") for node in model.graph.node)
    assert outputs(model, forms.context.calibration).size


def test_weights_of_an_lstm_are_rounded_per_gate_row():
    forms = forms_of(two_lstms(), 3, 2, 6, reduce_range=False)
    model = forms.weights(forms.sites[0].nodes)
    weights = {each.name: numpy_helper.to_array(each) for each in forms.graph.graph.initializer}
    for place, name in ((1, "w"), (2, "r")):
        wanted = rounded(weights[name][0])
        np.testing.assert_allclose(constant(model, "first", place)[0], wanted, atol=1e-6)
    np.testing.assert_array_equal(constant(model, "second", 1), weights["v"])
    assert forms.activations(forms.everything) is None  # what it rounds lives inside


def test_a_product_is_rounded_dynamically():
    forms = forms_of(product(), 2, 6, reduce_range=False)
    feeds, (site,) = forms.context.calibration, forms.sites
    weight = normal(3, 6, 5)
    np.testing.assert_allclose(
        constant(forms.weights(site.nodes), "product", 1), rounded(weight.T).T, atol=1e-6
    )
    value = outputs(forms.activations(site.nodes), feeds)
    wanted = []
    for each in feeds:
        low, high = min(each["x"].min(), 0), max(each["x"].max(), 0)
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        x = (np.clip(np.rint(each["x"] / scale) + zero, 0, 255) - zero) * scale
        wanted.append((x @ weight + normal(4, 5)).ravel())
    np.testing.assert_allclose(value, np.concatenate(wanted), atol=1e-5)
    kinds = {node.op_type for node in forms.integers(site.nodes).graph.node}
    assert "MatMulInteger" in kinds
