import json
import re
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.analysis import (
    Analysis,
    AnalyzeOptions,
    Held,
    LayerResult,
    SchemeResult,
    Whole,
    analyze,
    render_analysis,
    saturation_text,
    summarize,
)
from aigc_compress.analysis.forms import Forms
from aigc_compress.analysis.noise import NoiseMeter
from aigc_compress.analysis.sites import Site, find_sites
from aigc_compress.analysis.times import layer_times
from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import AigcCompressError
from aigc_compress.meter import NodeTime
from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.saturation import Saturation
from aigc_compress.schemes import SCHEMES
from aigc_compress.workload import FeedOptions

FLOAT = TensorProto.FLOAT


def model_of(nodes, inputs, outputs, **constants):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info(name, FLOAT, shape) for name, shape in inputs.items()],
        [info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def two_layers(outlier=1.0):
    """A convolution with its Relu, and one that reads a channel `outlier` times the others."""
    node = helper.make_node
    gain = np.ones((1, 4, 1, 1), np.float32)
    gain[0, 0] = outlier
    quiet = normal(1, 4, 4, 3, 3)
    quiet[:, 0] = 0.0  # the loud channel carries nothing: it only wastes the range of the others
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], name="tame", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["r"], name="relu"),
        node("Mul", ["r", "gain"], ["m"], name="outlier"),
        node("Conv", ["m", "w2"], ["y"], name="wild", pads=[1, 1, 1, 1]),
    ]
    constants = {"w1": normal(0, 4, 3, 3, 3), "b1": normal(2, 4), "gain": gain, "w2": quiet}
    return model_of(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]}, **constants)


def product():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Add", ["p", "b"], ["y"], name="bias"),
    ]
    constants = {"w": normal(3, 6, 5), "b": normal(4, 5)}
    return model_of(nodes, {"x": [2, 6]}, {"y": [2, 5]}, **constants)


def two_lstms():
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["h"], hidden_size=4, name="first"),
        helper.make_node("Squeeze", ["h", "axis"], ["s"], name="squeeze"),
        helper.make_node("LSTM", ["s", "v", "q"], ["y"], hidden_size=4, name="second"),
    ]
    weights = {"w": normal(5, 1, 16, 6), "r": normal(6, 1, 16, 4)}
    weights |= {"v": normal(7, 1, 16, 4), "q": normal(8, 1, 16, 4), "axis": np.array([1])}
    return model_of(nodes, {"x": [3, 2, 6]}, {"y": [3, 1, 2, 4]}, **weights)


def forms_of(model, *shape, **settings):
    feeds = tuple({"x": normal(10 + seed, *shape)} for seed in range(4))
    return Forms(model, find_sites(model), QuantizeConfig(**settings), Context(feeds[:2], feeds))


def convolutions(outlier=1.0, **settings):
    return forms_of(two_layers(outlier), 1, 3, 8, 8, **settings)


def outputs(model, feeds):
    session = OrtSession(Artifact("onnx", model), threads=1)
    return np.concatenate([session.run(each)["y"].ravel() for each in feeds])


def decibels(reference, value):
    return 10 * np.log10((reference**2).sum() / ((reference - value) ** 2).sum())


def constant(model, node_name, place):
    node = next(each for each in model.graph.node if each.name == node_name)
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    return arrays[node.input[place]]


def rounded(weight, limit=127):
    """Return per-channel symmetric INT8 weights as floats: the first axis are output channels."""
    scale = np.abs(weight).reshape(len(weight), -1).max(1) / limit
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return np.rint(weight / scale) * scale


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


@pytest.mark.parametrize(("is_reduced", "limit"), [(False, 127), (True, 64)])
def test_weights_alone_are_those_that_the_file_stores(is_reduced, limit):
    forms = convolutions(reduce_range=is_reduced)
    model = forms.weights(forms.everything)
    original = numpy_helper.to_array(forms.graph.graph.initializer[0])
    np.testing.assert_allclose(constant(model, "tame", 1), rounded(original, limit), atol=1e-6)
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


def test_the_noise_of_activations_alone_is_that_of_rounding_them_in_numpy():
    weight, x = normal(20, 24, 32), normal(21, 40, 32)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="layer", transB=1)
    model = model_of([node], {"x": [40, 32]}, {"y": [40, 24]}, w=weight)
    context = Context(({"x": x},), ({"x": x},))
    forms = Forms(model, find_sites(model), QuantizeConfig(), context)
    found = NoiseMeter(forms).layer(forms.sites[0])

    def through_uint8(values):
        low, high = min(values.min(), 0), max(values.max(), 0)
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale

    exact = x @ weight.T
    assert found.weights_db == pytest.approx(decibels(exact, x @ rounded(weight).T), abs=0.1)
    wanted = through_uint8(through_uint8(x) @ weight.T)
    # the range of the output is read from exact values; a rounded one may end a step beyond
    assert found.activations_db == pytest.approx(decibels(exact, wanted), abs=0.3)
    both = through_uint8(through_uint8(x) @ rounded(weight).T)
    assert found.both_db == pytest.approx(decibels(exact, both), abs=0.3)


def test_the_layer_whose_activations_do_the_harm_is_found():
    forms = convolutions(outlier=300.0)
    meter = NoiseMeter(forms)
    tame, _, wild = (meter.layer(site) for site in forms.sites)
    assert wild.both_db < tame.both_db - 20
    assert wild.activations_db < wild.weights_db - 20


def test_what_is_left_out_is_left_on_floats():
    forms = convolutions(outlier=300.0)
    meter = NoiseMeter(forms)
    layers = [meter.layer(site) for site in forms.sites]
    worst = sorted(layers, key=lambda each: each.both_db)
    whole = meter.whole(forms.integers(forms.everything))
    held = {each.names: each.db for each in meter.without(worst)}
    assert len(held) == 3  # two alone, and both: something must stay
    assert held[(worst[0].site.name, worst[1].site.name)] > whole.both_db + 10


def test_noise_is_pooled_over_all_feeds():
    forms = convolutions()
    site = forms.sites[2]
    found = NoiseMeter(forms).layer(site)
    feeds = forms.context.calibration
    wanted = outputs(forms.graph, feeds)
    value = outputs(forms.integers(site.nodes), feeds)
    assert found.both_db == pytest.approx(decibels(wanted, value), abs=1e-3)


def test_a_float_convolution_between_integers_is_not_rounded_behind_our_back():
    forms = convolutions()
    names = forms.everything
    found = NoiseMeter(forms).whole(forms.integers(names))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = forms.activations(names).SerializeToString()
    session = onnxruntime.InferenceSession(plain, options, providers=["CPUExecutionProvider"])
    feeds = forms.context.calibration
    value = np.concatenate([session.run(None, each)[0].ravel() for each in feeds])
    wanted = outputs(forms.graph, feeds)
    assert found.activations_db == pytest.approx(decibels(wanted, value), abs=0.1)


def test_one_lstm_of_two_can_be_integer():
    forms = forms_of(two_lstms(), 3, 2, 6)
    model = forms.integers(forms.sites[1].nodes)
    kinds = {node.name: node.op_type for node in model.graph.node}
    assert kinds["first"] == "LSTM"
    assert [kind for kind in kinds.values() if "LSTM" in kind] == ["LSTM", "DynamicQuantizeLSTM"]
    assert all(node.domain in ("", "com.microsoft") for node in model.graph.node)
    assert outputs(model, forms.context.calibration).size


def test_weights_of_an_lstm_are_rounded_per_gate_row():
    forms = forms_of(two_lstms(), 3, 2, 6)
    model = forms.weights(forms.sites[0].nodes)
    weights = {each.name: numpy_helper.to_array(each) for each in forms.graph.graph.initializer}
    for place, name in ((1, "w"), (2, "r")):
        wanted = rounded(weights[name][0])
        np.testing.assert_allclose(constant(model, "first", place)[0], wanted, atol=1e-6)
    np.testing.assert_array_equal(constant(model, "second", 1), weights["v"])
    assert forms.activations(forms.everything) is None  # what it rounds lives inside


def test_a_product_is_rounded_dynamically():
    forms = forms_of(product(), 2, 6)
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


class FakeMeter:
    """Tells times by output: floats and integers in turn."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def profile(self, _artifact, _feeds):
        return {name: NodeTime(op, ms, 1) for name, (op, ms) in self.answers.pop(0).items()}


def test_times_of_fused_nodes_belong_to_their_layer():
    floats = {"r": ("Conv", 2.0), "m": ("Mul", 0.5), "y": ("Conv", 3.0)}
    integers = {
        "r_QuantizeLinear_Output": ("QLinearConv", 0.75),
        "m_QuantizeLinear_Output": ("QLinearMul", 0.25),
        "y_QuantizeLinear_Output": ("QLinearConv", 1.0),
    }
    forms = convolutions()
    context = replace(forms.context, meter=FakeMeter(floats, integers))
    times = layer_times(replace(forms, context=context), forms.graph, {})
    assert list(times.values()) == [(2.0, 0.75), (0.5, 0.25), (3.0, 1.0)]


def test_time_that_is_up_is_said():
    forms = convolutions()
    meter = NoiseMeter(forms, max_minutes=0.0)
    layers = [meter.layer(site) for site in forms.sites]
    assert [each.both_db for each in layers] == [None] * 3
    assert meter.skipped == ["tame", "outlier", "wild"]


def test_progress_ends_where_it_said_it_would():
    steps = []
    forms = convolutions()
    meter = NoiseMeter(forms, on_step=lambda done, total: steps.append((done, total)))
    layers = [meter.layer(site) for site in forms.sites]
    meter.whole(forms.integers(forms.everything))
    list(meter.without(layers))
    list(meter.schemes())
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert {total for _, total in steps} == {len(steps)}


@pytest.fixture(scope="module")
def layers_onnx(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    onnx.save(two_layers(300.0), folder / "layers.onnx")
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


def layer(name, db):
    return LayerResult(Site(name, "Conv", (name,), (f"{name}_y",)), both_db=db)


@pytest.mark.parametrize(
    ("whole", "told"),
    [
        (Whole(41.0, 18.0, 18.0), "Activations do the harm: 18.0 dB alone, against 41.0 dB"),
        (Whole(18.0, 41.0, 18.0), "Weights do the harm: 18.0 dB alone, against 41.0 dB"),
        (Whole(20.0, 21.0, 17.0), "about equal harm: 20.0 dB and 21.0 dB"),
        (
            Whole(30.0, None, 28.0),
            "Weights alone give 30.0 dB. All layers on integers give 28.0 dB.",
        ),
        (Whole(None, None, 28.0), "All layers on integers give 28.0 dB."),
        (Whole(41.0, 18.0, 18.0, 22.0), "Ranges of least error would give 22.0 dB."),
    ],
)
def test_the_summary_says_what_does_the_harm(whole, told):
    found = Analysis("m", layers=(layer("a", 20.0), layer("b", 30.0)), whole=whole)
    assert told in " ".join(summarize(found))


@pytest.mark.parametrize(
    ("db", "told"),
    [(27.0, "Without a the rest would reach 27.0 dB."), (18.3, "No layer stands out")],
)
def test_the_summary_names_the_layer_that_stands_out(db, told):
    layers = (layer("a", 20.0), layer("b", 30.0))
    found = Analysis("m", layers=layers, whole=Whole(both_db=18.0), held=(Held(("a",), db),))
    assert told in " ".join(summarize(found))


def test_the_summary_tells_which_layers_saturate_and_what_seven_bits_cost():
    saturation = (
        Saturation("a", "Conv", "y", 10, 0.5, 1.5, 0.1, 0.25),
        Saturation("b", "Conv", "z", 10, 0.1, 1.2, 0.0, 0.0),
        Saturation("c", "Conv", "u", 10, 0.0, 0.9, 0.0, 0.0),
    )
    schemes = (
        SchemeResult(SCHEMES["avx2"], 19.0, False),
        SchemeResult(SCHEMES["vnni"], 20.0, True),
    )
    found = Analysis("m", (layer("a", 20.0),), saturation=saturation, schemes=schemes)
    text = " ".join(summarize(found))
    assert "2 of 3 layers can saturate with 8-bit weights; on these feeds 1 did" in text
    assert "a (25.0% of outputs)" in text
    assert "7-bit weights prevent it: 19.0 dB instead of 20.0 dB." in text


@pytest.mark.parametrize(
    ("finding", "text"),
    [
        (None, "-"),
        (Saturation("a", "Conv", "y", 10, 0.0, 0.9, 0.0, 0.0), "no"),
        (Saturation("a", "Conv", "y", 10, 0.5, 1.5, 0.0, 0.0), "may, not seen"),
        (Saturation("a", "Conv", "y", 10, 0.5, 1.5), "may: 50.0% of pairs"),
        (Saturation("a", "Conv", "y", 10, 0.5, 1.5, 0.1, 0.2), "20.0% of outputs"),
        (Saturation("a", "QAttention", "y", note="not known"), "unknown"),
    ],
)
def test_a_finding_reads_in_one_cell(finding, text):
    assert saturation_text(finding) == text


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
