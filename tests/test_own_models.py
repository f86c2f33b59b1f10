"""A user's own models through the public API: pruned, trained, exported, quantized."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import aigc_compress
from aigc_compress.bench.latency import LatencyPlan
from aigc_compress.budget import Budget
from aigc_compress.errors import UsageError
from aigc_compress.runtime import load

RECIPE = """\
name: own
description: from a user's module to integers
task: own_models:{task}
max_drop: "{max_drop}"
passes:
  - pass: prune
    config: {{target_macs: 0.5}}
  - pass: finetune
    config:
      settings: {{steps: 20, batch_size: 32, learning_rate: 0.002}}
  - pass: export
  - pass: fold
  - pass: quantize
"""
CASES = {"resnet": ("Classify", "8"), "unet": ("Repeat", "0.05")}


@pytest.fixture(autouse=True)
def _own(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    sys.modules.pop("own_models", None)


@pytest.mark.slow
@pytest.mark.parametrize("model", list(CASES))
def test_a_module_of_ones_own_becomes_a_smaller_one_on_integers(model, tmp_path):
    task, max_drop = CASES[model]
    (tmp_path / "own.yaml").write_text(RECIPE.format(task=task, max_drop=max_drop))
    recipe = aigc_compress.load_recipe(str(tmp_path / "own.yaml"))
    options = aigc_compress.RunOptions(
        tmp_path / "run", Budget.parse(max_drop), plan=LatencyPlan(processes=3, blocks=4)
    )
    result = aigc_compress.run(
        recipe, f"own_models:{model}", options, aigc_compress.TaskCoach(device="cpu")
    )
    source, pruned, tuned, *_, last = result.steps
    assert pruned.macs <= 0.5 * source.macs
    assert tuned.judgement.quality.drop_from(pruned.judgement.quality) < 0
    assert last.judgement.within, last.judgement
    assert last.size_bytes < source.size_bytes / 5
    artifact = aigc_compress.load_artifact(result.output)
    operators = artifact.history[-1].numbers["operators"]
    assert sum(operators["int8"].values()) > 5
    image = np.zeros((2, 1, 28, 28), np.float32)
    (output,) = load(result.output)(image).values()
    assert len(output) == 2
    assert np.isfinite(output).all()
    json.dumps(result.document())


def test_what_a_task_cannot_do_is_told_before_any_work(tmp_path):
    import own_models

    loss = own_models.Classify.loss
    del own_models.Classify.loss
    try:
        (tmp_path / "own.yaml").write_text(RECIPE.format(task="Classify", max_drop="1"))
        recipe = aigc_compress.load_recipe(str(tmp_path / "own.yaml"))
        with pytest.raises(UsageError, match="no training step: it has no loss"):
            aigc_compress.run(
                recipe,
                "own_models:ResNet18",
                aigc_compress.RunOptions(tmp_path / "run"),
                aigc_compress.TaskCoach(device="cpu"),
            )
    finally:
        own_models.Classify.loss = loss
    assert not (tmp_path / "run").exists()
