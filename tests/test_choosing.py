"""Which recipes `compress` tries, and which of their results it hands back."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from aigc_compress import choosing
from aigc_compress.artifact import Artifact, ModelSpec
from aigc_compress.budget import Budget, judge_quality
from aigc_compress.choosing import choose_recipes, compress
from aigc_compress.errors import UsageError
from aigc_compress.loading import load_artifact
from aigc_compress.models.registry import KINDS
from aigc_compress.models.training.coach import TaskCoach
from aigc_compress.running import RunOptions
from aigc_compress.task import Quality

COACH = TaskCoach(device="cpu")


def names(artifact, coach=COACH, **more):
    recipes, why = choose_recipes(artifact, RunOptions(Path("unused")), coach, **more)
    return [each.name for each in recipes], why


@pytest.mark.parametrize(("model", "task"), [("cnn", "cnn"), ("gan", "gan"), ("rnn-gru", "rnn")])
def test_the_cheap_recipe_comes_first_only_where_a_target_may_be_met_by_it(model, task):
    artifact = load_artifact(model)
    assert names(artifact)[0] == [f"{task}-edge", "int8"]
    assert names(artifact, target_ms=1.0)[0] == ["int8", f"{task}-edge"]


def test_where_nothing_can_be_trained_the_reason_is_told():
    artifact = load_artifact("cnn")
    assert names(artifact, None) == (["int8"], "int8 alone, since training was ruled out")
    found, why = names(replace(artifact, stage="onnx"))
    assert found == ["int8"]
    assert "ONNX graph" in why
    with pytest.raises(UsageError, match="names no task"):
        names(Artifact("onnx", None))
    config = {**artifact.spec.config, "widths": (4, 4, 4), "blocks": (1, 1, 1)}
    module = KINDS["cnn"].module(KINDS["cnn"].config.model_validate(config)).eval()
    tiny = Artifact("torch", module, ModelSpec("cnn", config), "cnn")
    found, why = names(tiny)
    assert found == ["int8"]
    assert "more than its teacher" in why


@pytest.mark.parametrize(
    ("made", "target", "chosen", "tried", "is_met"),
    [
        # (latency, drop) of the edge recipe and of int8; 1.0 is allowed
        ({"cnn-edge": (1.0, 0.5), "int8": (2.0, 0.0)}, None, "cnn-edge", 1, True),
        ({"cnn-edge": (1.0, 1.5), "int8": (2.0, 0.2)}, None, "int8", 2, True),
        ({"cnn-edge": (1.0, 1.5), "int8": (2.0, 2.0)}, None, "cnn-edge", 2, False),
        ({"cnn-edge": (1.0, 0.5), "int8": (2.0, 0.0)}, 2.5, "int8", 1, True),
        ({"cnn-edge": (1.0, 0.5), "int8": (2.0, 0.0)}, 1.5, "cnn-edge", 2, True),
        ({"cnn-edge": (1.0, 0.5), "int8": (2.0, 0.0)}, 0.5, "cnn-edge", 2, False),
        ({"cnn-edge": (1.0, 1.5), "int8": (2.0, 0.0)}, 1.5, "int8", 2, False),
    ],
)
def test_the_fastest_within_the_budget_is_handed_back(
    monkeypatch, tmp_path, made, target, chosen, tried, is_met
):
    """What runs measure is dictated here, since only the decision is tested."""

    def dictated(recipe, *_args, **_more):
        ms, drop = made[recipe.name]
        before = Quality("top-1 %", 90.0, True, 100, "test")
        judgement = judge_quality(replace(before, value=90 - drop), before, Budget(absolute=1.0))
        row = SimpleNamespace(timing=SimpleNamespace(median_ms=ms), judgement=judgement)
        return SimpleNamespace(recipe=recipe, bench=SimpleNamespace(rows=[row]))

    monkeypatch.setattr(choosing, "run", dictated)
    choice = compress("cnn", RunOptions(tmp_path), COACH, target_ms=target)
    assert choice.result.recipe.name == chosen
    assert (len(choice.tried), choice.is_met) == (tried, is_met)
