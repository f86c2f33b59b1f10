"""Whole models, from their file to numbers, JSON and a page."""

import json
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from analysis_graphs import convolutions, model_of, normal, two_layers
from onnx import helper

from aigc_compress.analysis import Analysis, AnalyzeOptions, analyze, render_analysis, summarize
from aigc_compress.errors import AigcCompressError
from aigc_compress.schemes import SCHEMES
from aigc_compress.workload import FeedOptions


@pytest.fixture(scope="module")
def layers_onnx(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    onnx.save(two_layers(127.0), folder / "layers.onnx")
    x = normal(30, 6, 1, 3, 8, 8)
    np.savez(folder / "feeds.npz", x=x)
    return folder / "layers.onnx", FeedOptions(evaluation=folder / "feeds.npz")


@pytest.fixture(scope="module")
def found(layers_onnx):
    source, feeds = layers_onnx
    return analyze(source, AnalyzeOptions(feeds))


def test_a_model_is_analyzed_from_its_file(found):
    assert [each.site.kind for each in found.layers if each.site.kind == "Conv"] == ["Conv"] * 2
    assert all(each.both_db is not None for each in found.layers)
    assert all(each.float_ms is not None for each in found.layers)
    assert found.feeds == 6
    assert found.whole.activations_db < found.whole.weights_db
    assert sum(each.is_here for each in found.schemes) == 1
    assert {each.scheme.name for each in found.schemes} == set(SCHEMES)
    assert {each.name for each in found.saturation} <= {each.site.name for each in found.layers}


def test_two_analyses_agree_but_for_times(layers_onnx, found):
    source, feeds = layers_onnx
    again = analyze(source, AnalyzeOptions(feeds))

    def timeless(each):
        return [replace(layer, float_ms=None, integer_ms=None) for layer in each.layers]

    assert timeless(again) == timeless(found)
    assert (again.whole, again.held, again.schemes) == (found.whole, found.held, found.schemes)


def test_the_document_is_plain_json_with_the_same_numbers(found):
    document = json.loads(json.dumps(found.document()))
    assert document["schema"] == "aigc-compress/analyze/1"
    assert [each["name"] for each in document["layers"]] == [e.site.name for e in found.layers]
    assert document["layers"][0]["alone_db"]["both"] == found.layers[0].both_db
    assert document["whole_db"]["both_db"] == found.whole.both_db
    assert document["summary"] == list(summarize(found))


def test_a_model_without_such_layers_has_nothing_to_quantize(tmp_path):
    node = helper.make_node("Tanh", ["x"], ["y"])
    onnx.save(model_of([node], {"x": [2, 3]}, {"y": [2, 3]}), tmp_path / "tanh.onnx")
    found = analyze(tmp_path / "tanh.onnx")
    assert found.layers == ()
    assert summarize(found) == ("Nothing to quantize.",)
    assert any("Tanh" in note for note in found.notes)


def test_a_quantized_model_is_looked_at_for_saturation_alone(tmp_path):
    forms = convolutions()
    onnx.save(forms.integers(forms.everything), tmp_path / "int8.onnx")
    found = analyze(tmp_path / "int8.onnx")
    assert found.is_quantized
    assert found.layers == ()
    assert {each.name for each in found.saturation} == {"tame", "wild"}
    assert "these weights" in summarize(found)[0]


def test_a_graph_that_does_not_run_is_refused(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    model = model_of(nodes, {"x": [1, 3, 2, 2]}, {"y": [*"abcd"]}, w=normal(0, 4, 3, 5, 5))
    onnx.save(model, tmp_path / "small.onnx")  # a kernel of 5 on an image of 2
    with pytest.raises(AigcCompressError, match="does not"):
        analyze(tmp_path / "small.onnx")


def test_the_page_shows_every_number_and_escapes_every_name(found):
    hostile = replace(found.layers[0].site, name="<script>alert(1)</script>")
    page = render_analysis(replace(found, layers=(replace(found.layers[0], site=hostile),)))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert f">{found.layers[0].both_db:.1f}</td>" in page
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    for each in SCHEMES.values():
        assert each.told in page


def test_less_noise_has_less_colour(found):
    layers = [
        replace(found.layers[0], both_db=db, weights_db=None, activations_db=None)
        for db in (70.0, 40.0, 20.0, -10.0)
    ]
    page = render_analysis(replace(found, layers=tuple(layers)))
    heats = re.findall(r'data-label="INT8" class="harm" style="--heat: (\d+)"', page)
    assert heats == ["0", "40", "80", "100"]  # from 60 dB down to 10 dB


def test_a_page_of_nothing_says_so():
    page = render_analysis(Analysis("m", notes=("There is nothing.",)))
    assert "Nothing to quantize." in page
    assert "There is nothing." in page
