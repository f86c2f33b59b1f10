"""Model files that are missing, damaged, hostile or of another kind."""

import json
import pickle
import zipfile

import numpy as np
import onnx
import pytest
import torch
from conftest import graph, run_process, tiny_checkpoint
from hostile import Bomb
from onnx import numpy_helper

from aigc_compress.checkpoint import FORMAT, write_checkpoint


def test_missing_files_are_named(refuse):
    assert "There is no file nothing.pt" in refuse("info", "nothing.pt", code=2)
    assert "There is no file nothing.onnx" in refuse("info", "nothing.onnx", code=2)
    assert "no shipped model of that name" in refuse("info", "nothing", code=2)


def test_a_folder_is_no_model(refuse, workplace):
    for name in ("folder.onnx", "folder.pt", "folder"):
        (workplace / name).mkdir()
        assert f"{name} is a folder" in refuse("info", name, code=2)


def test_a_name_longer_than_the_system_allows_is_refused(refuse):
    assert "name too long" in refuse("info", "a" * 300 + ".onnx", code=1)


@pytest.mark.parametrize("content", [b"", b"text, no model", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("name", ["bad.pt", "bad.onnx"])
def test_damaged_models_are_refused(refuse, workplace, name, content):
    (workplace / name).write_bytes(content)
    assert name in refuse("info", name, code=2)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_truncated_checkpoint_is_refused(refuse, gan_pt, share):
    content = gan_pt.read_bytes()
    gan_pt.write_bytes(content[: int(len(content) * share)])
    refuse("export", gan_pt, "-o", "out.onnx", code=2)


def test_a_hostile_checkpoint_is_refused_and_its_code_does_not_run(refuse, workplace):
    marker = workplace / "it-ran"
    torch.save({"format": FORMAT, "model": Bomb(marker)}, workplace / "hostile.pt")
    assert "refused" in refuse("quantize", "hostile.pt", code=2)
    assert not marker.exists()


def test_the_hostile_object_does_run_where_it_is_unpickled(workplace):
    pickle.loads(pickle.dumps(Bomb(workplace / "it-ran")))
    assert (workplace / "it-ran").exists()


def test_a_bare_pickle_is_refused_and_its_code_does_not_run(refuse, workplace):
    marker = workplace / "it-ran"
    (workplace / "bare.pt").write_bytes(pickle.dumps(Bomb(marker)))
    refuse("info", "bare.pt", code=2)
    assert not marker.exists()


def test_a_torch_file_of_something_else_says_what_is_expected(refuse, workplace):
    torch.save({"weights": torch.ones(3)}, workplace / "other.pt")
    assert "not a checkpoint of aigc-compress" in refuse("info", "other.pt", code=2)


def test_a_zip_that_is_no_torch_file_is_refused(refuse, workplace):
    with zipfile.ZipFile(workplace / "zip.pt", "w") as archive:
        archive.writestr("hello", "world")
    refuse("info", "zip.pt", code=2)


@pytest.mark.parametrize("pickled", [b"", b"no pickle", b"\x80\x02(", b"\x80\x02K\x01K\x02.", b"."])
def test_a_torch_file_with_a_broken_pickle_is_refused(refuse, workplace, pickled):
    with zipfile.ZipFile(workplace / "broken.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    assert "broken.pt" in refuse("info", "broken.pt", code=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "diffusion"},
        {"model": []},
        {"config": {"widths": "many"}},
        {"config": {"latent": 4, "colour": True}},
        {"state_dict": {}},
        {"state_dict": {1: 2}},
        {"state_dict": "abc"},
        {"history": [{"name": 3}]},
        {"history": "yesterday"},
    ],
)
def test_a_checkpoint_with_damaged_parts_is_refused(refuse, workplace, changes):
    good = tiny_checkpoint("gan")
    fields = {n: getattr(good, n) for n in ("model", "config", "state_dict", "task")}
    torch.save({"format": FORMAT, **fields, **changes}, workplace / "damaged.pt")
    refuse("info", "damaged.pt", code=2)


@pytest.mark.parametrize("part", ["model", "config", "state_dict"])
def test_a_checkpoint_without_a_part_names_it(refuse, workplace, part):
    fields = {"format": FORMAT, **vars(tiny_checkpoint("gan"))}
    del fields[part]
    torch.save(fields, workplace / "short.pt")
    assert part in refuse("info", "short.pt", code=2)


@pytest.mark.parametrize(
    ("task", "told"), [("gam", "Did you mean 'gan'"), ("rnn", "rnn"), (None, "names no task")]
)
def test_a_checkpoint_of_another_task_cannot_be_exported(refuse, workplace, task, told):
    write_checkpoint(workplace / "gan.pt", tiny_checkpoint("gan", task=task))
    assert told in refuse("export", "gan.pt", code=2)


def test_a_graph_cut_off_or_of_random_bytes_is_refused(refuse, scores_onnx):
    content = scores_onnx.read_bytes()
    for damaged in (content[:-40], np.random.default_rng(0).bytes(2000)):
        scores_onnx.write_bytes(damaged)
        assert "not a valid ONNX model" in refuse("quantize", scores_onnx, code=2)


def test_a_graph_without_its_external_data_is_refused(refuse, workplace):
    model = graph("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    weights = numpy_helper.from_array(np.ones(2, np.float32), "w")  # raw, as far data must be
    model.graph.initializer[0].CopyFrom(weights)
    onnx.save(model, "far.onnx", save_as_external_data=True, location="far.bin", size_threshold=0)
    (workplace / "far.bin").unlink()
    assert "far.bin" in refuse("quantize", "far.onnx", code=2)


def test_an_onnx_file_without_nodes_is_refused(refuse, workplace):
    (workplace / "hollow.onnx").write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    refuse("info", "hollow.onnx", code=2)


def test_an_opset_that_is_too_old_is_named(refuse, workplace):
    model = graph("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.opset_import[0].version = 9
    onnx.save(model, workplace / "old.onnx")
    assert "opset 9" in refuse("quantize", "old.onnx", "-o", "out.onnx", code=2)


@pytest.mark.parametrize(
    "metadata",
    [
        {"task": "rnn", "model": '{"name": "rnn", "config": {}}'},
        {"task": "rnn", "model": '{"name": "rnn", "config": "abc"}'},
        {"task": "rnn", "model": "{"},
        {"history": '[{"nom": 1}]'},
        {"task": "poetry", "model": '{"name": "gan", "config": {}}'},
        {"task": "gan", "model": '{"name": "gan", "config": {}}'},
    ],
)
def test_damaged_metadata_is_refused(refuse, scores_onnx, metadata):
    model = onnx.load(scores_onnx)
    for key, value in metadata.items():
        model.metadata_props.add(key=f"aigc_compress.{key}", value=value)
    onnx.save(model, scores_onnx)
    refuse("quantize", scores_onnx, "-o", "out.onnx", code=2)


def test_a_graph_with_nothing_to_quantize_comes_back_as_it_was_and_says_so(workplace):
    onnx.save(graph("g (float[2] x) => (float[2] y) { y = Add(x, x) }"), workplace / "add.onnx")
    done = run_process("quantize", "add.onnx", "-o", "o.onnx", "--json", cwd=workplace)
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    reasons = [each["reason"] for each in told["candidates"] if each["name"].startswith("INT8")]
    assert reasons
    assert all("Nothing was quantized" in reason for reason in reasons)
    assert "Add" in {node.op_type for node in onnx.load(workplace / "o.onnx").graph.node}
