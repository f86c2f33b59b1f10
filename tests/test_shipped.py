"""What ships as an edge model: its file, its card, and what both promise."""

import hashlib
import json

import pytest

from aigc_compress.artifact import read_onnx
from aigc_compress.models import EDGES
from aigc_compress.models.registry import weights_path
from aigc_compress.models.tasks import make_task
from aigc_compress.passes.saturation import find_saturation
from aigc_compress.runtime import load

# Kernels of other processors round otherwise: KID x 1e3, points of top-1, bits per character.
CLOSE = {"gan-edge": 0.15, "cnn-edge": 0.15, "rnn-edge": 0.003}
LEAST_SMALLER = {"gan-edge": 20, "cnn-edge": 20, "rnn-edge": 15}  # than the reference's file


class Shipped:
    """The runtime as the task's runner."""

    def __init__(self, path):
        self._model = load(path, threads=2)

    def run(self, feeds):
        return self._model(**feeds)


@pytest.mark.parametrize("name", EDGES)
def test_an_edge_model_is_what_its_card_says(name, run_cli, workplace):
    path = weights_path(name)
    card = json.loads(path.with_suffix(".json").read_text())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
    assert card["size_bytes"] == path.stat().st_size
    assert card["quality"]["within"]
    assert card["speedup"]["low"] > 5
    assert card["smaller"] >= LEAST_SMALLER[name]
    artifact = read_onnx(path)
    assert not [each for each in find_saturation(artifact.payload) if each.is_possible]
    assert artifact.spec is not None
    task = make_task(artifact.task, artifact.spec.config)
    found = task.evaluate(Shipped(path), split="test")
    assert found.value == pytest.approx(card["quality"]["value"], abs=CLOSE[name])
    assert run_cli("fetch", name).code == 0
    assert (workplace / path.name).read_bytes() == path.read_bytes()
