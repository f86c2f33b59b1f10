"""Options that do not parse, fit or exist, and how errors are shown."""

import importlib.util
import signal
import subprocess

import pytest
import torch
from conftest import CLI, assert_refused, run_process

from aigc_compress.engines import ENGINES
from aigc_compress.engines.trt import PACKAGES


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
    told = refuse("bench", gan_pt, "--engine", "onnx", code=2)
    assert f"Known: {', '.join(sorted(ENGINES))}." in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so TensorRT may be here")
def test_tensorrt_without_a_gpu_ends_with_code_3_and_tells_how_to_get_it(refuse):
    message = refuse("bench", "--engine", "trt", code=3)
    assert "CUDA" in message
    if not any(importlib.util.find_spec(name) for name in PACKAGES):
        assert "pip install 'aigc-compress[tensorrt]'" in message


@pytest.mark.parametrize("sizes", ["0", "a", "1,,2", ""])
def test_sizes_that_are_no_whole_numbers_are_refused(refuse, gan_pt, sizes):
    refuse("bench", gan_pt, "--batch", sizes, code=2)


def test_a_length_without_a_time_axis_is_refused(refuse, gan_pt):
    assert "no time axis" in refuse("bench", gan_pt, "--length", "8", code=2)


def test_an_unknown_reference_is_refused(refuse):
    assert "Did you mean 'gan'" in refuse("fetch", "gam", code=2)


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
