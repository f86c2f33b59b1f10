"""Recipes from a model to the file, killed and interrupted in between."""

import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import CLI

from aigc_compress.artifact import read_onnx

RECIPE = """\
name: small
description: a line that takes seconds
max_drop: 50%
passes:
  - pass: prune
    config: {target_macs: 0.8, multiple: 1, least: 1}
  - pass: distill
    config:
      settings: {steps: 40, batch_size: 4, window: 16, validate_every: 20,
                 validation_samples: 320, precision: fp32}
  - pass: export
"""
OPTIONS = ("--samples", "640", "--processes", "3", "--device", "cpu", "--json")


@pytest.fixture
def recipe(workplace, text_pt):
    (workplace / "small.yaml").write_text(RECIPE)
    return "small.yaml"


def test_a_recipe_is_run_and_every_step_told(run_cli, recipe, workplace):
    done = run_cli("run", recipe, "rnn.pt", *OPTIONS)
    assert done.code == 0, done.stderr
    document = json.loads(done.stdout)
    names = ["source", "1 prune", "2 distill", "3 export"]
    assert [each["name"] for each in document["steps"]] == names
    macs = [each["macs"] for each in document["steps"]]
    assert macs[1] == macs[3] < macs[0]
    assert [row["is_baseline"] for row in document["bench"]["rows"]] == [True, False]
    history = [step.name for step in read_onnx(workplace / "small.onnx").history]
    assert history == ["prune", "distill", "export"]
    first = (workplace / "small.onnx").read_bytes()
    again = run_cli("run", recipe, "rnn.pt", *OPTIONS)
    assert all(each["was_kept"] for each in json.loads(again.stdout)["steps"][1:])
    assert (workplace / "small.onnx").read_bytes() == first
    (workplace / "runs" / "small" / "02-distill.pt").unlink()  # to train it once more
    anew = run_cli("run", recipe, "rnn.pt", *OPTIONS)
    kept = [each["was_kept"] for each in json.loads(anew.stdout)["steps"]]
    assert kept == [False, True, False, False]
    assert (workplace / "small.onnx").read_bytes() == first
    changed = run_cli("run", recipe, "rnn.pt", "--set", "distill.settings.steps=20", *OPTIONS)
    kept = [each["was_kept"] for each in json.loads(changed.stdout)["steps"]]
    assert kept == [False, True, False, False]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_in_the_same_file(recipe, workplace):
    folder = workplace / "runs" / "small"
    for step in ("source.onnx", "01-prune.json", "02-distill-*/metrics.jsonl", "03-export.json"):
        process = subprocess.Popen(
            [*CLI, "run", recipe, "rnn.pt", *OPTIONS],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 120
        while not list(folder.glob(step)) and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(folder.glob(step)), step
        assert not (workplace / "small.onnx").exists()
    assert run(recipe) == 0
    assert run(recipe, "--folder", "runs/fresh", "-o", "fresh.onnx") == 0
    assert (workplace / "fresh.onnx").read_bytes() == (workplace / "small.onnx").read_bytes()


def run(recipe, *more):
    command = [*CLI, "run", recipe, "rnn.pt", *OPTIONS, *more]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=sys.stderr).returncode


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("--set", "distill.student={hidden: 4096}"), "more than its teacher"),
        (("--set", "distill.settings.stepz=3"), "stepz"),
        (("--set", "prune.ratio=2"), "line 6, passes.0.config.ratio"),
        (("--set", "luck=3"), "has no pass 'luck'"),
    ],
)
def test_faults_are_told_before_any_work(run_cli, recipe, workplace, settings, told):
    done = run_cli("run", recipe, "rnn.pt", *settings)
    assert done.code == 2
    assert told in done.stderr
    assert not (workplace / "runs").exists()
    assert not list(workplace.glob("*.onnx"))


def test_steps_in_a_wrong_order_are_told_before_any_work(run_cli, recipe, workplace):
    text = (workplace / recipe).read_text()
    (workplace / recipe).write_text(text + "  - pass: prune\n    config: {ratio: 0.5}\n")
    done = run_cli("run", recipe, "rnn.pt")
    assert done.code == 2
    assert "Step 4, prune, takes a torch model" in done.stderr
    (workplace / recipe).write_text(text.replace("pass: export", "pass: fold"))
    assert "put export before it" in run_cli("run", recipe, "rnn.pt").stderr
    assert not (workplace / "runs").exists()


def test_a_recipe_without_a_model_asks_for_one(refuse, recipe):
    assert "names no model" in refuse("run", recipe, code=2)


def test_a_graph_without_a_task_has_no_quality(refuse, recipe, scores_onnx):
    assert "names no task" in refuse("run", recipe, "scores.onnx", code=2)
