"""Making bundles: of models with a task and without, again the same bytes, and what is refused."""

import json
from itertools import islice

import numpy as np
import pytest
from conftest import graph

from aigc_compress.artifact import Artifact, save_onnx
from aigc_compress.bundling import BundleOptions, make_bundle
from aigc_compress.models.data import CLASSES
from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.quantize import QuantizePass
from aigc_compress.runtime import Bundle, Classifier, Images, Writer, load
from aigc_compress.runtime.archive import open_archive
from aigc_compress.workload import FeedOptions


def loaded(folder, models, **options):
    made = make_bundle(models, BundleOptions(**options))
    (folder / "x.aigc").write_bytes(made.content)
    return load(folder / "x.aigc"), made


def test_a_generator_draws(gan_pt, workplace):
    model, made = loaded(workplace, [gan_pt])
    assert isinstance(model, Images)
    drawn = model.generate(40, seed=3)
    assert drawn.shape == (40, 28, 28)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, model.generate(40, seed=3))
    assert not np.array_equal(drawn, model.generate(40, seed=4))
    latents = np.random.default_rng(3).standard_normal((40, 4), dtype=np.float32)
    wanted = np.rint((model(latents)[:, 0].astype(np.float64) + 1) * 127.5)
    assert np.abs(drawn - wanted).max() <= 1  # halves may round either way
    assert "Fashion-MNIST" in made.manifest["licences"][0]
    assert model.generate(0).shape[0] == 0


def test_a_classifier_names_what_it_sees(cnn_pt, workplace):
    model, _ = loaded(workplace, [cnn_pt])
    assert isinstance(model, Classifier)
    picture = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    guesses = model.classify(picture, best=10)
    logits = model(picture[None, None].astype(np.float32) / 127.5 - 1)[0].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum()
    assert [each.label for each in guesses] == [CLASSES[i] for i in np.argsort(-shares)]
    assert sum(each.probability for each in guesses) == pytest.approx(1)


@pytest.mark.parametrize("picture", [np.zeros((27, 28), np.uint8), np.zeros((28, 28))])
def test_a_picture_of_another_size_is_refused(cnn_pt, workplace, picture):
    model, _ = loaded(workplace, [cnn_pt])
    with pytest.raises(Exception, match="the model takes uint8"):
        model.classify(picture)


def test_a_writer_writes_as_it_would_in_one_go(text_pt, workplace):
    model, _ = loaded(workplace, [text_pt])
    assert isinstance(model, Writer)
    written = "".join(model.write("In the ", 12, temperature=0))
    alphabet, text = model.variant.processing["alphabet"], "In the "
    zeros = dict.fromkeys(("h", "c"), np.zeros((2, 1, 12), np.float32))
    for _ in range(12):  # without handing states on: everything is read again for each character
        tokens = np.array([[alphabet.index(each) for each in text]])
        text += alphabet[model.run({"tokens": tokens, **zeros})["logits"][0, -1].argmax()]
    assert text == "In the " + written
    drawn = ["".join(islice(model.write("In ", 50, seed=seed), 20)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompt": ""}, "is empty"),
        ({"prompt": "Ä"}, "'Ä', which the model does not know"),
        ({"temperature": -1.0}, "at least 0"),
        ({"temperature": float("nan")}, "at least 0"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused_before_anything_is_written(
    text_pt, workplace, options, told
):
    model, _ = loaded(workplace, [text_pt])
    with pytest.raises(Exception, match=told):
        model.write(n=3, **options)


def test_a_variant_of_another_state_has_its_own_face(text_pt, workplace, run_cli):
    model, made = loaded(workplace, ["rnn-edge"], fallback=str(text_pt))
    own = made.manifest["variants"][1]
    assert own["processing"]["states"][0]["shape"] == [2, "batch", 12]
    assert made.manifest["variants"][0]["processing"] is None
    for variant in ("rnn-edge", "rnn"):
        text = "".join(load(workplace / "x.aigc", variant=variant).write(n=5))
        assert len(text) == 5
    assert model.variant.name == "rnn-edge"
    assert run_cli("verify", "x.aigc").code == 0


def test_a_model_without_a_task_is_fed_plain_arrays(scores_onnx, workplace):
    model, made = loaded(workplace, [scores_onnx])
    assert type(model) is Bundle
    assert made.manifest["kind"] is None
    assert made.manifest["inputs"][0]["shape"] == ["batch", 3]
    assert made.manifest["outputs"][0]["shape"] == ["batch", 2]
    outputs = model(np.ones((2, 3), np.float32), np.array([1, 2]))
    np.testing.assert_array_equal(outputs["m"], [2, 4])
    assert any("plain arrays" in note for note in made.notes)


def test_the_same_inputs_give_the_same_bytes_packed_or_not(gan_pt):
    plain, again = (make_bundle([gan_pt]).content for _ in range(2))
    assert plain == again
    packed = make_bundle([gan_pt], BundleOptions(is_packed=True))
    assert packed.content == make_bundle([gan_pt], BundleOptions(is_packed=True)).content
    assert packed.manifest["variants"][0]["model"].endswith(".onnx.xz")


def test_what_saturates_without_vnni_says_that_it_needs_it(workplace):
    ones = ", ".join(["1"] * 512)
    text = f"g (float[N, 64] x) => (float[N, 8] y) <float[64, 8] w = {{{ones}}}>"
    floats = Artifact("onnx", graph(text + " { y = MatMul(x, w) }"))
    feeds = tuple({"x": np.random.default_rng(i).random((2, 64), np.float32)} for i in range(3))
    config = QuantizeConfig(mode="static", reduce_range=False)
    save_onnx(QuantizePass().run(floats, config, Context(feeds, feeds)), workplace / "int8.onnx")
    save_onnx(floats, workplace / "floats.onnx")
    rules = FeedOptions(feed=("x=uniform(0,1)",))
    options = BundleOptions(fallback=workplace / "floats.onnx", feeds=rules)
    told = make_bundle([workplace / "int8.onnx"], options).manifest["variants"]
    assert told[0]["needs"] == {"x86_64": ["avx512_vnni", "avx_vnni"]}
    assert told[1]["needs"] == {}


def test_a_card_beside_the_file_is_its_evidence(workplace):
    told = make_bundle(["cnn-edge"]).manifest["variants"][0]
    assert told["evidence"]["quality"]["metric"] == "top-1 %"
    assert told["evidence"]["speedup"]["low"] > 1
    assert "exhibit" not in told["evidence"]["quality"]


def test_bundle_says_what_is_missing(run_cli, workplace):
    ended = run_cli("bundle", "cnn-edge", "-o", "x.aigc")
    assert ended.code == 0
    assert "no floating-point fallback" in ended.stderr
    assert ended.stdout.endswith("x.aigc\n")


def test_bundle_prints_what_it_wrote(run_cli, workplace, gan_pt):
    ended = run_cli("bundle", gan_pt, "--time", "--json", "--licence", "mine")
    told = json.loads(ended.stdout)
    assert told["manifest"]["variants"][0]["latency_ms"] > 0
    assert told["manifest"]["licences"][-1] == "mine"
    assert open_archive("gan.aigc").names[0] == "manifest.json"
    assert told["size_bytes"] == (workplace / "gan.aigc").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["missing.onnx"], 2, "no file"),
        (["gan.pt", "--fallback", "cnn.pt"], 2, "is no variant of"),
        (["gan.pt", "-o", "x.zip"], 2, "must end in .aigc"),
        (["gan.pt", "-o", "nowhere/x.aigc"], 1, "no folder"),
        (["gan.pt", "--sign", "missing.pem"], 2, "no file"),
        (["gan.pt", "--sign", "cnn.pt"], 2, "no ed25519 private key"),
        (["gan.pt", "--engine", "missing.engine"], 2, "missing.engine"),
    ],
)
def test_what_cannot_be_bundled_is_refused(gan_pt, cnn_pt, refuse, arguments, code, told):
    assert told in refuse("bundle", *arguments, code=code)
