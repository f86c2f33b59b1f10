import io
import json
import os
import pickle
import resource
import signal
import subprocess
import zipfile

import numpy as np
import onnx
import pytest
import torch
from conftest import CLI, assert_refused, files_in, fill, graph, run_process, tiny_checkpoint
from onnx import numpy_helper

from aigc_compress.checkpoint import FORMAT, write_checkpoint


def test_missing_files_are_named(refuse):
    assert "There is no file nothing.pt" in refuse("info", "nothing.pt", code=2)
    assert "There is no file nothing.onnx" in refuse("info", "nothing.onnx", code=2)
    assert "no reference of that name" in refuse("info", "nothing", code=2)


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


class Bomb:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


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


GOOD = {"x": np.zeros((2, 4, 3), np.float32), "n": np.zeros((2, 4), np.int64)}


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": GOOD["x"]}, "one array per input"),
        ({**GOOD, "z": GOOD["x"]}, "one array per input"),
        ({**GOOD, "x": GOOD["x"].astype(np.float64)}, "float64"),
        ({**GOOD, "x": GOOD["x"][..., :2]}, "[4, 2]"),
        ({**GOOD, "x": GOOD["x"][:1]}, "same number of samples"),
        ({"x": GOOD["x"][:0], "n": GOOD["n"][:0]}, "samples"),
        ({**GOOD, "n": GOOD["n"][:, :3]}, "N=4"),
    ],
)
def test_calibration_that_does_not_fit_is_explained(refuse, scores_onnx, arrays, told):
    np.savez("feeds.npz", **arrays)
    message = refuse("quantize", scores_onnx, "--calibration", "feeds.npz", "-o", "o.onnx", code=2)
    assert told in message


def npz(**members):
    """Return a zip of members as they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


X = npy(GOOD["x"])
NOT_FEEDS = {
    "missing": None,
    "text": b"no zip",
    "empty": b"",
    "a single array": X,
    "cut off": npz(x_npy=X, n_npy=X)[:100],
    "members that are no arrays": npz(x="text", n="text"),
    "a damaged header": npz(x_npy=X[:10] + b"{'descr': broken" + bytes(60), n_npy=X),
    "an empty member": npz(x_npy=b"", n_npy=X),
    "a member cut off": npz(x_npy=X[:-8], n_npy=X),
}


@pytest.mark.parametrize("content", NOT_FEEDS.values(), ids=NOT_FEEDS)
def test_calibration_that_is_no_npz_is_refused(refuse, scores_onnx, workplace, content):
    if content is not None:
        (workplace / "feeds.npz").write_bytes(content)
    refuse("quantize", scores_onnx, "--calibration", "feeds.npz", "-o", "o.onnx", code=2)


def test_calibration_with_pickled_objects_is_refused_unread(refuse, scores_onnx, workplace):
    marker = workplace / "it-ran"
    np.savez("feeds.npz", x=np.array([Bomb(marker)], dtype=object), n=GOOD["n"])
    refuse("quantize", scores_onnx, "--calibration", "feeds.npz", "-o", "o.onnx", code=2)
    assert not marker.exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--feed", "x"),
        ("--feed", "x=normal(0)"),
        ("--feed", "x=gamma(1,2)"),
        ("--feed", "q=normal(0,1)"),
        ("--feed", "=normal(0,1)"),
        ("--feed", "x=normal(a,b)"),
        ("--feed", "x=normal(0,-1)"),
        ("--feed", "x=uniform(-inf,inf)"),
        ("--feed", "n=randint(5,5)"),
        ("--feed", "n=randint(0,inf)"),
        ("--feed", "n=constant(nan)"),
        ("--shape", "x"),
        ("--shape", "x=\u00b2,3"),
        ("--shape", "x=1,4"),
        ("--shape", "x=4,3"),
        ("--shape", "N=999999999999999"),
        ("--shape", "x=1,b"),
        ("--shape", "x=0,3"),
        ("--shape", "q=1,2"),
        ("--shape", "M=7"),
        ("--max-drop", "much"),
        ("--max-drop", "1%", "--min-sqnr", "20"),
    ],
)
def test_options_that_do_not_parse_or_fit_are_refused(refuse, scores_onnx, options):
    refuse("quantize", scores_onnx, *options, "-o", "o.onnx", code=2)


@pytest.mark.parametrize(
    ("output", "code"),
    [("missing/out.onnx", 1), ("folder.onnx", 1), ("/proc/out.onnx", 1), ("out.bin", 2)],
)
@pytest.mark.parametrize("verb", ["export", "quantize"])
def test_outputs_that_cannot_be_written_are_refused_before_any_work(
    refuse, gan_pt, workplace, verb, output, code
):
    (workplace / "folder.onnx").mkdir()
    refuse(verb, gan_pt, "-o", output, code=code)


WRITERS = {
    "bench": ("bench", "cnn.pt"),
    "export": ("export", "cnn.pt"),
    "fetch": ("fetch", "cnn"),
    "quantize": ("quantize", "cnn.pt"),
    "sample a picture": ("sample", "gan.pt"),
    "sample a text": ("sample", "rnn.pt", "--prompt", "In the beginning", "--count", "3"),
}


@pytest.mark.parametrize("words", WRITERS.values(), ids=WRITERS)
def test_no_verb_writes_where_it_cannot(refuse, workplace, gan_pt, cnn_pt, rnn_pt, words):
    os.mkfifo(workplace / "pipe.onnx")
    (workplace / "folder.onnx").mkdir()
    assert "no plain file" in refuse(*words, "-o", "pipe.onnx", code=1)
    assert (workplace / "pipe.onnx").is_fifo()
    assert "it is a folder" in refuse(*words, "-o", "folder.onnx", code=1)
    assert "there is no folder gone" in refuse(*words, "-o", "gone/out.onnx", code=1)
    assert "Cannot write /proc" in refuse(*words, "-o", "/proc/out.onnx", code=1)


def test_the_source_is_never_overwritten(refuse, scores_onnx):
    assert "source itself" in refuse("quantize", scores_onnx, "-o", scores_onnx, code=2)


def test_a_full_disk_loses_nothing(full_disk, gan_pt, run_cli):
    (full_disk / "gan.onnx").write_bytes(b"what was here before")
    fill(full_disk)
    before = files_in(full_disk)
    ending = run_cli("export", gan_pt, "-o", full_disk / "gan.onnx")
    assert_refused(ending, 1)
    assert files_in(full_disk) == before


def test_a_checkpoint_on_a_full_disk_loses_nothing(full_disk):
    from aigc_compress.errors import OutputError

    (full_disk / "gan.pt").write_bytes(b"what was here before")
    fill(full_disk)
    before = files_in(full_disk)
    with pytest.raises(OutputError, match="space"):
        write_checkpoint(full_disk / "gan.pt", tiny_checkpoint("gan"))
    assert files_in(full_disk) == before


def test_a_limit_of_the_file_size_loses_nothing(workplace, gan_pt):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    (workplace / "grid.png").write_bytes(b"what was here before")
    before = files_in(workplace)
    ending = run_process("sample", gan_pt, "-o", "grid.png", cwd=workplace, preexec_fn=limit)
    assert_refused(ending, 1)
    assert files_in(workplace) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "gan.pt", "--mode", "int4"),
        ("quantize", "gan.pt", "--threads", "0"),
        ("quantize", "gan.pt", "--processes", "1"),
        ("export", "gan.pt", "--opset", "9"),
        ("bench", "--seed", "-1"),
        ("sample", "gan.pt", "--count", "0"),
        ("sample", "rnn.pt", "--temperature", "-1"),
        ("quantise",),
    ],
)
def test_options_out_of_range_end_with_code_2(run_cli, arguments):
    ending = run_cli(*arguments)
    assert ending.code == 2
    assert "Traceback" not in ending.stderr


def test_an_unknown_engine_lists_the_known_ones(refuse, gan_pt):
    assert "Known: openvino, ort, torch, trt" in refuse("bench", gan_pt, "--engine", "onnx", code=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so TensorRT may be here")
def test_tensorrt_without_a_gpu_ends_with_code_3_and_tells_how_to_get_it(refuse):
    message = refuse("bench", "--engine", "trt", code=3)
    assert "CUDA" in message
    assert "pip install 'aigc-compress[tensorrt]'" in message


@pytest.mark.parametrize("sizes", ["0", "a", "1,,2", ""])
def test_sizes_that_are_no_whole_numbers_are_refused(refuse, gan_pt, sizes):
    refuse("bench", gan_pt, "--batch", sizes, code=2)


def test_a_length_without_a_time_axis_is_refused(refuse, gan_pt):
    assert "no time axis" in refuse("bench", gan_pt, "--length", "8", code=2)


def test_an_unknown_reference_is_refused(refuse):
    assert "Did you mean 'gan'" in refuse("fetch", "gam", code=2)


def test_fetch_does_not_overwrite_another_file(refuse, workplace):
    (workplace / "cnn.pt").write_bytes(b"mine")
    assert "--force" in refuse("fetch", "cnn", code=1)


def test_a_graph_with_nothing_to_quantize_comes_back_as_it_was_and_says_so(workplace):
    onnx.save(graph("g (float[2] x) => (float[2] y) { y = Add(x, x) }"), workplace / "add.onnx")
    done = run_process("quantize", "add.onnx", "-o", "o.onnx", "--json", cwd=workplace)
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    reasons = [each["reason"] for each in told["candidates"] if each["name"].startswith("INT8")]
    assert reasons
    assert all("Nothing was quantized" in reason for reason in reasons)
    assert "Add" in {node.op_type for node in onnx.load(workplace / "o.onnx").graph.node}


def test_a_model_that_draws_nothing_cannot_be_sampled(refuse, cnn_pt):
    assert "neither draws nor writes" in refuse("sample", cnn_pt, code=2)


def test_a_prompt_with_unknown_characters_names_them(refuse, rnn_pt):
    assert "'é'" in refuse("sample", rnn_pt, "--prompt", "été", "-o", "t.txt", code=2)
    assert "'é'" in refuse("sample", rnn_pt, "--prompt", "été", code=2)
    assert "at least one character" in refuse("sample", rnn_pt, "--prompt", "", code=2)


@pytest.mark.parametrize(
    "options",
    [
        ("--set", "steps"),
        ("--set", "=5"),
        ("--set", "steps=[1"),
        ("--set", "steps.first=1"),
        ("--set", "model.colour=red"),
        ("--set", "colour=red"),
        ("--set", "learning_rate=-1"),
        ("--device", "tpu"),
        ("--config", "missing.yaml"),
        ("--config", "list.yaml"),
        ("--config", "broken.yaml"),
        ("--config", "empty.yaml"),
        ("--config", "bytes.yaml"),
        ("--config", "."),
    ],
)
def test_training_settings_that_are_wrong_are_refused(refuse, workplace, options):
    (workplace / "list.yaml").write_text("- steps")
    (workplace / "broken.yaml").write_text("steps: [1")
    (workplace / "empty.yaml").touch()
    (workplace / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    refuse("train", "rnn", *options, code=2)


def test_errors_of_a_real_process_look_the_same(workplace):
    assert_refused(run_process("info", "nothing.pt", cwd=workplace), 2)


def test_debug_shows_the_traceback_before_the_error(workplace):
    ending = run_process("--debug", "info", "nothing.pt", cwd=workplace)
    assert ending.code == 2
    assert "Traceback" in ending.stderr
    assert ending.stderr.endswith("Error: There is no file nothing.pt.\n")


def test_an_interrupt_ends_with_code_130_and_one_line(workplace, rnn_pt):
    words = ["sample", str(rnn_pt), "--prompt", "In the beginning", "--count", "100000"]
    with subprocess.Popen(
        [*CLI, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.read(20)  # more than the prompt: it is writing
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "Interrupted; no file was left half-written.\n"


def test_cores_that_the_machine_does_not_have_are_refused(refuse, gan_pt):
    message = refuse("bench", gan_pt, "--cores", "4095", "--no-quality", code=2)
    assert "this machine allows" in message
