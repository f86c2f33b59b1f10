import hashlib
import importlib.util
import logging
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from autotune_nets import (
    NETS,
    PASS,
    context_of,
    drawn,
    linears,
    needs_packages,
    numbers_of,
    prepared,
    torch_outputs,
    tuned,
)
from torch import nn

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import sqnr_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import NotOnThisMachineError, PassError, UsageError
from aigc_compress.passes import AutotuneConfig, Context


class Spiky(nn.Module):
    """A layer with one weight that spoils the scale of its input, before an easy one."""

    input_names = ("x",)
    output_names = ("y",)

    def __init__(self):
        super().__init__()
        self.easy = nn.Linear(8, 8)
        self.hard = nn.Linear(8, 8)

    def forward(self, x):
        spikes = torch.cat([x[:, :1] * 1e4, x[:, 1:]], 1)
        return self.easy(x) + self.hard(spikes) * torch.tensor([0.0] + [1.0] * 7)


def make_spiky():
    module = Spiky()
    with torch.no_grad():
        module.hard.weight[:, 0] = 0
    return module


@needs_packages
def test_the_most_sensitive_module_falls_back_first():
    _, artifact = tuned(make_spiky, {"x": (8,)}, ranges=("minmax",), least_sqnr_db=25)
    told = numbers_of(artifact)
    assert told["sensitivity_db"]["hard"] < told["sensitivity_db"]["easy"]
    assert [trial["keep_float"] for trial in told["trials"]] == [[], ["hard"]]
    assert told["chosen"] == {"ranges": "minmax", "keep_float": ["hard"]}
    assert told["score"]["is_met"]
    assert told["operators"]["int8"] == {"Gemm": 1}
    assert told["operators"]["float"] == {"Gemm": 1}
    assert "dB" in told["operators"]["reasons"]["hard"]


@needs_packages
def test_a_module_that_may_not_fall_back_does_not():
    _, artifact = tuned(make_spiky, {"x": (8,)}, least_sqnr_db=150, may_stay_float=("easy",))
    assert {tuple(t["keep_float"]) for t in numbers_of(artifact)["trials"]} == {(), ("easy",)}


@needs_packages
def test_where_no_trial_is_good_enough_the_best_comes_back_and_says_so():
    module, artifact = tuned(linears, {"x": (8,)}, least_sqnr_db=190)
    told = numbers_of(artifact)
    scores = [trial["score"] for trial in told["trials"]]
    assert len(scores) > 2
    assert not told["score"]["is_met"]
    assert told["score"]["value"] == max(scores) < 190
    feeds = context_of({"x": (8,)}).check_feeds
    session = OrtSession(artifact, threads=1)
    found = min(sqnr_db(torch_outputs(module, f)["y"], session.run(f)["y"]) for f in feeds)
    assert found == pytest.approx(told["score"]["value"], abs=0.5)  # sums round otherwise in ORT


@needs_packages
def test_no_more_trials_are_made_than_allowed():
    _, artifact = tuned(linears, {"x": (8,)}, least_sqnr_db=190, most_trials=3)
    assert len(numbers_of(artifact)["trials"]) == 3


@needs_packages
@pytest.mark.parametrize(("tolerable", "is_met"), [(1e6, True), (0.0, False)])
def test_a_negative_score_with_a_loss_in_its_own_unit_ends_the_search(tolerable, is_met):
    shapes = {"x": (8,)}
    feeds = drawn(shapes, 5, 21)
    wanted = torch_outputs(prepared(linears), feeds)["y"]

    def score(runner):
        return -3.0 - float(np.abs(runner.run(feeds)["y"] - wanted).max())

    context = context_of(shapes, score=score)
    _, artifact = tuned(linears, shapes, context, tolerable_loss=tolerable)
    told = numbers_of(artifact)
    assert told["score"]["float"] == pytest.approx(-3)
    assert told["score"]["is_met"] is is_met
    assert (len(told["trials"]) == 1) is is_met
    found = OrtSession(artifact, threads=1).run(feeds)["y"]
    assert told["score"]["value"] == pytest.approx(-3 - np.abs(found - wanted).max(), abs=1e-2)


@needs_packages
def test_a_score_that_is_no_number_is_refused():
    context = context_of({"x": (8,)}, score=lambda _runner: float("nan"))
    with pytest.raises(PassError, match="no finite number"):
        tuned(linears, {"x": (8,)}, context)


@needs_packages
def test_the_same_seed_gives_the_same_bytes():
    make, shapes, _ = NETS["transposed"]
    first, second = (
        tuned(make, shapes, least_sqnr_db=60, most_trials=4)[1].payload.SerializeToString()
        for _ in range(2)
    )
    assert first == second


FRESH = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from autotune_nets import NETS, tuned
make, shapes, _ = NETS["transposed"]
_, artifact = tuned(make, shapes, least_sqnr_db=60, most_trials=4)
sys.stdout.write(hashlib.sha256(artifact.payload.SerializeToString()).hexdigest())
"""


@needs_packages
def test_a_fresh_process_gives_the_same_bytes_and_shows_nothing_else():
    command = [sys.executable, "-c", FRESH, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    make, shapes, _ = NETS["transposed"]
    _, artifact = tuned(make, shapes, least_sqnr_db=60, most_trials=4)
    assert done.stdout == hashlib.sha256(artifact.payload.SerializeToString()).hexdigest()
    assert done.stderr == ""


@needs_packages
def test_nothing_is_shown_and_no_global_state_changes(capfd):
    tuned(linears, {"x": (8,)})  # what the libraries set up when they are first imported stays
    capfd.readouterr()
    np_state, state = np.random.get_state()[1].copy(), random.getstate()
    torch_state, filters = torch.get_rng_state(), list(warnings.filters)
    module, _ = tuned(linears, {"x": (8,)}, least_sqnr_db=190)
    assert capfd.readouterr() == ("", "")
    assert (np_state == np.random.get_state()[1]).all()
    assert state == random.getstate()
    assert torch.equal(torch_state, torch.get_rng_state())
    assert filters == warnings.filters
    assert logging.root.manager.disable == logging.NOTSET
    for before, after in zip(prepared(linears).parameters(), module.parameters(), strict=True):
        assert torch.equal(before, after)


@needs_packages
def test_progress_rises_to_its_total():
    seen = []
    context = context_of({"x": (8,)}, on_step=lambda done, total: seen.append((done, total)))
    tuned(linears, {"x": (8,)}, context)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1]
    assert len({total for _, total in seen}) == 1


class Branching(nn.Module):
    """Branches on its data, which torch.export refuses."""

    input_names = ("x",)
    output_names = ("y",)

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


@needs_packages
def test_a_module_that_torch_cannot_capture_is_one_clear_error():
    with pytest.raises(PassError, match=r"torch\.export refuses") as caught:
        tuned(Branching, {"x": (8,)})
    assert "\n" not in str(caught.value)


class Scaled(nn.Module):
    """Has a parameter, but no layer."""

    input_names = ("x",)
    output_names = ("y",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x * self.weight


@needs_packages
def test_a_module_without_layers_is_refused():
    with pytest.raises(PassError, match="Nothing can be quantized"):
        tuned(Scaled, {"x": (8,)})


@needs_packages
def test_an_unknown_module_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"layers\.0, layers\.2, layers\.4"):
        tuned(linears, {"x": (8,)}, may_stay_float=("layers.1",))


def test_an_onnx_artifact_is_refused():
    model = onnx.ModelProto()
    with pytest.raises(UsageError, match="torch modules"):
        PASS.run(Artifact("onnx", model), AutotuneConfig(), Context(()))


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(NotOnThisMachineError, match=r"pip install 'aigc-compress\[neural-comp"):
        PASS.run(Artifact("torch", prepared(linears)), AutotuneConfig(), Context(()))
