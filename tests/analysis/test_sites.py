"""What counts as a layer."""

import pytest
from analysis_graphs import FLOAT, product, two_layers, two_lstms
from onnx import helper

from aigc_compress.analysis.sites import find_sites


def test_a_layer_is_a_node_with_the_activation_that_is_fused_into_it():
    sites = find_sites(two_layers())
    assert [(site.name, site.operator) for site in sites] == [
        ("tame", "Conv+Relu"),
        ("outlier", "Mul"),
        ("wild", "Conv"),
    ]
    assert sites[0].nodes == ("tame", "relu")
    assert {site.form for site in sites} == {"static"}


def test_an_activation_that_others_see_the_input_of_stands_alone():
    model = two_layers()
    model.graph.output.append(helper.make_tensor_value_info("a", FLOAT, [1, 4, 8, 8]))
    assert [site.name for site in find_sites(model)] == ["tame", "relu", "outlier", "wild"]


@pytest.mark.parametrize(
    ("model", "names"), [(product(), ["product"]), (two_lstms(), ["first", "second"])]
)
def test_products_and_recurrent_layers_are_dynamic(model, names):
    sites = find_sites(model)
    assert [site.name for site in sites] == names
    assert {site.form for site in sites} == {"dynamic"}


def test_what_hands_integers_through_is_no_layer():
    model = two_layers()
    model.graph.node[3].output[0] = "before"
    model.graph.node.append(helper.make_node("Transpose", ["before"], ["y"], name="turn"))
    assert "turn" not in {site.name for site in find_sites(model)}
