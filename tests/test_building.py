"""Engines built without a GPU: from every reference, with a card that is believed only if true."""

import json

import numpy as np
import pytest
from conftest import graph, tiny_checkpoint
from onnx import TensorProto

from aigc_compress.artifact import Artifact, save_onnx
from aigc_compress.building import (
    PRECISIONS,
    EngineOptions,
    build,
    card_path,
    graph_for_engine,
    parse_profiles,
    read_card,
    why_not_here,
)
from aigc_compress.checkpoint import save_torch, write_checkpoint
from aigc_compress.errors import InputFileError, NotOnThisMachineError, PassError, UsageError
from aigc_compress.loading import load_artifact
from aigc_compress.models import EDGES, REFERENCES
from aigc_compress.passes import Context, SparsifyConfig
from aigc_compress.pipeline import run_passes
from aigc_compress.workload import FeedOptions, make_workload

pytestmark = pytest.mark.tensorrt
pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU")
SOUND = """net (float[batch,3,h,w] x) => (float[batch,4,h,w] y)
<float[4,3,1,1] k = {1,2,3,4,5,6,7,8,9,10,11,12}> { y = Conv(x, k) }"""


def in_8_bits(card):
    return any(count for kind, count in card["operators"].items() if kind != "float")


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_reference_is_built_in_every_precision(name, precision):
    built = build(name, EngineOptions(precision=precision, judges=False))
    assert len(built.plan) == built.card["size_bytes"] > 100_000
    least = {"fp32": 100, "fp16": 50, "fp8": 20, "int8": 20}[precision]
    assert built.card["sqnr_db"] > least
    assert in_8_bits(built.card) == (precision in ("fp8", "int8"))
    assert built.card["builder"]["package"] == "tensorrt_rtx"


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_every_recipe_makes_is_built_in_every_precision(name, precision):
    built = build(name, EngineOptions(precision=precision, judges=False))
    assert len(built.plan) == built.card["size_bytes"] > 100_000
    assert [step["name"] for step in built.card["history"]][-3:] == [
        *("dequantize", "fold", "tensorrt"),
    ]
    assert any("quantized for another engine" in note for note in built.notes)
    assert in_8_bits(built.card) == (precision in ("fp8", "int8"))


@pytest.fixture
def net(workplace):
    save_onnx(Artifact("onnx", graph(SOUND)), workplace / "net.onnx")
    rng = np.random.default_rng(0)
    np.savez(workplace / "feeds.npz", x=rng.normal(size=(8, 1, 3, 6, 6)).astype(np.float32))
    return workplace / "net.onnx"


def test_engine_and_card_belong_together(net, workplace):
    target = workplace / "net.engine"
    options = EngineOptions(
        precision="int8",
        profiles={"x": ((1, 3, 4, 4), (1, 3, 8, 8), (2, 3, 16, 16))},
        feeds=FeedOptions(calibration=workplace / "feeds.npz"),
    )
    built = build(net, options, target)
    assert target.read_bytes() == built.plan
    card = read_card(target)
    assert card == json.loads(json.dumps(built.card))
    assert card["profiles"]["x"][2] == [2, 3, 16, 16]
    assert [step["name"] for step in card["history"]] == ["fold", "tensorrt"]
    target.write_bytes(built.plan[:-1])
    with pytest.raises(InputFileError, match="Export it again"):
        read_card(target)
    card_path(target).unlink()
    with pytest.raises(InputFileError, match="There is no file"):
        read_card(target)


def test_sizes_are_those_of_the_feeds_unless_told(net, workplace):
    feeds = FeedOptions(calibration=workplace / "feeds.npz")
    built = build(net, EngineOptions(precision="fp16", feeds=feeds))
    assert built.card["profiles"]["x"] == [[1, 3, 6, 6], [1, 3, 6, 6], [64, 3, 6, 6]]
    assert any("h is 6, w is 6" in note for note in built.notes)
    told = {"x": ((1, 3, 4, 4), (1, 3, 8, 8), (2, 3, 16, 16))}
    built = build(net, EngineOptions(precision="fp16", feeds=feeds, profiles=told))
    assert built.card["profiles"]["x"][2] == [2, 3, 16, 16]
    assert not built.notes
    assert build("cnn", EngineOptions(precision="fp32")).card["profiles"] == {}


def test_another_version_is_named(net):
    card = dict(build(net, EngineOptions(precision="fp32")).card)
    card["builder"] = {**card["builder"], "version": "0.1"}
    assert "the very version that built them" in why_not_here(card)


def test_int8_that_tensorrt_takes_is_no_fp8(net, workplace):
    feeds = FeedOptions(workplace / "feeds.npz", workplace / "feeds.npz")
    integer = graph_for_engine(net, EngineOptions(precision="int8", judges=False, feeds=feeds))
    save_onnx(integer.graph, workplace / "int8.onnx")
    options = EngineOptions(precision="fp8", judges=False, feeds=feeds)
    found = graph_for_engine(workplace / "int8.onnx", options)
    types = {each.data_type for each in found.graph.payload.graph.initializer}
    assert TensorProto.FLOAT8E4M3FN in types
    assert TensorProto.INT8 not in types
    assert any("taken back to floats" in note for note in found.notes)


def test_a_device_is_aimed_at(net):
    assert build(net, EngineOptions(precision="fp16", device="sm_89")).card["device"] == "sm_89"
    with pytest.raises(UsageError, match="Known: portable, sm_"):
        build(net, EngineOptions(device="sm_12"))
    with pytest.raises(UsageError, match="sm_86 has no FP8"):
        build(net, EngineOptions(precision="fp8", device="sm_86"))


def test_fp8_is_judged_and_an_old_graph_is_brought_to_an_opset_that_knows_it(workplace):
    old = graph(SOUND.replace("batch,3,h,w", "batch,3,6,6").replace("batch,4,h,w", "batch,4,6,6"))
    old.opset_import[0].version = 11
    save_onnx(Artifact("onnx", old), workplace / "net.onnx")
    rng = np.random.default_rng(0)
    np.savez(workplace / "feeds.npz", x=rng.normal(size=(8, 1, 3, 6, 6)).astype(np.float32))
    feeds = FeedOptions(workplace / "feeds.npz", workplace / "feeds.npz")
    card = build(workplace / "net.onnx", EngineOptions(precision="fp8", feeds=feeds)).card
    assert card["operators"] == {"fp8": {"Conv": 1}, "float": {}}
    assert card["quality"]["value"] > 25  # dB, of a mantissa of three bits


@pytest.mark.parametrize(
    ("profiles", "told"),
    [
        ({"z": ((1,), (1,), (1,))}, "There is no input 'z'"),
        ({"x": ((1, 3), (1, 3), (1, 3))}, "a profile has"),
        ({"x": ((1, 5, 4, 4), (1, 5, 4, 4), (1, 5, 4, 4))}, "a profile has"),
    ],
)
def test_profiles_that_do_not_fit_are_refused(net, profiles, told):
    with pytest.raises(UsageError, match=told):
        build(net, EngineOptions(precision="fp32", profiles=profiles))


@pytest.mark.parametrize(
    "text", ["x", "x=", "=1:1:1", "x=1:2", "x=a:b:c", "x=1,2:1:1", "x=4:2:8", "x=0:1:2"]
)
def test_profiles_that_do_not_read_are_refused(text):
    with pytest.raises(UsageError, match="--profile"):
        parse_profiles([text])


def test_profiles_are_read():
    assert parse_profiles(["x=1,8:2,8:4,8"]) == {"x": ((1, 8), (2, 8), (4, 8))}


def test_a_wrong_device_is_told_before_the_quality_is_measured(net, monkeypatch):
    def measured(*_args, **_kwargs):
        raise AssertionError("the search began")

    monkeypatch.setattr("aigc_compress.building.choose_int8", measured)
    with pytest.raises(UsageError, match="sm_12"):
        build(net, EngineOptions(precision="int8", device="sm_12"))


def test_what_tensorrt_lacks_writes_nothing(workplace):
    save_onnx(
        Artifact("onnx", graph("net (float[3,3] x) => (float y) { y = Det(x) }")),
        workplace / "net.onnx",
    )
    with pytest.raises(PassError, match=r"Det\): it has no such operator"):
        build(workplace / "net.onnx", EngineOptions(precision="fp32"), workplace / "net.engine")
    assert not (workplace / "net.engine").exists()


def test_without_tensorrt_it_is_told_how_to_get_it(net, monkeypatch):
    monkeypatch.setattr("aigc_compress.engines.trt.PACKAGES", ())
    with pytest.raises(NotOnThisMachineError, match="pip install"):
        build(net)


def test_export_and_doctor(run_cli, refuse, net, workplace):
    write_checkpoint(workplace / "gan.pt", tiny_checkpoint("gan"))
    few = ("--samples", "200")
    done = run_cli("export", "gan.pt", "--engine", "trt", "--precision", "int8", *few)
    assert done.code == 0, done.stderr
    assert done.stdout == "gan.engine\n"
    assert "In int8: 3 ConvTranspose, 1 Gemm" in done.stderr
    assert "within the budget, on test data" in done.stderr
    ending = run_cli("doctor", "gan.engine")
    assert ending.code in (0, 3)  # as there is a GPU or not
    assert run_cli("doctor", "net.onnx").stdout == "TensorRT takes net.onnx.\n"
    refuse("export", "gan.pt", "--engine", "openvino", code=2)
    refuse("export", "gan.pt", "--engine", "trt", "--precision", "int4", code=2)
    refuse("export", "gan.pt", "--engine", "trt", "-o", "gan.onnx", code=2)
    refuse("export", "gan.pt", "--precision", "int8", code=2)
    refuse("export", "gan.pt", "--engine", "trt", "--opset", "18", code=2)
    refuse("export", "gan.pt", "--engine", "trt", "--ranges", "mse", code=2)  # in fp16
    int8 = ("export", "gan.pt", "--engine", "trt", "--precision", "int8", "--ranges")
    refuse(*int8, "widest", code=2)
    assert run_cli(*int8, "mse", *few).code == 0
    card = json.loads((workplace / "gan.engine.json").read_text())
    assert card["history"][-1]["config"]["ranges"] == "mse"
    refuse("export", "gan.pt", "--profile", "z=1,4:1,4:1,4", code=2)
    refuse("doctor", "net.onnx", "--engine", "ort", code=2)
    refuse("doctor", "nowhere.engine", code=2)
    refuse("bench", "gan.engine", code=2)


def test_doctor_needs_no_feeds_for_a_graph(run_cli, workplace):
    """Rows that do not fit noise of one size: other commands would ask for feeds."""
    text = "net (float[n,k] x, float[n,7] z) => (float y) { y = MatMul(x, z) }"
    save_onnx(Artifact("onnx", graph(text)), workplace / "net.onnx")
    assert run_cli("doctor", "net.onnx").stdout == "TensorRT takes net.onnx.\n"


def test_bench_builds_without_running(run_cli, refuse, net):
    done = run_cli("bench", "net.onnx", "--engine", "trt", "--build-only", "--json")
    assert done.code == 0, done.stderr
    document = json.loads(done.stdout)
    rows = {row["precision"]: row for row in document["builds"]}
    assert set(rows) == set(PRECISIONS)
    assert rows["fp32"]["build_seconds"] > 0
    assert rows["fp32"]["size_bytes"] > 1000
    ended = run_cli("bench", "net.onnx", "--engine", "trt", "--build-only", "--batch", "8")
    assert ended.code == 2
    assert "--batch has no effect with --build-only" in ended.stderr
    shown = run_cli("bench", "net.onnx", "--engine", "trt", "--build-only")
    assert "built and not run" in shown.stdout
    refuse("bench", "net.onnx", "--build-only", code=2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zeros_in_the_pattern_of_sparse_kernels_reach_the_builder(precision, workplace):
    write_checkpoint(workplace / "cnn.pt", tiny_checkpoint("cnn"))
    dense = load_artifact(workplace / "cnn.pt")
    feeds = make_workload(dense, FeedOptions()).check_feeds()
    made = run_passes(dense, [("sparsify", SparsifyConfig(least=1))], Context(feeds))
    save_torch(made, workplace / "sparse.pt")
    options = EngineOptions(precision=precision, judges=False)
    card = build(workplace / "sparse.pt", options).card
    zeros = made.history[-1].numbers["zeros"]
    assert len(card["sparse_layers"]) == len(zeros) > 0
    assert build(workplace / "cnn.pt", options).card["sparse_layers"] == []
