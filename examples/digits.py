"""Transfer: the reference classifier of clothes learns handwritten digits from a few pictures.

    cd examples
    pip install scikit-learn
    aigc-compress run digits.yaml

The recipe first trains a new last layer while all others stand still, then all layers, and then
quantizes. The digits are the test set of "Optical Recognition of Handwritten Digits" (Alpaydin
and Kaynak, UCI Machine Learning Repository, CC BY 4.0), 1,797 pictures of 8 x 8 pixels that
scikit-learn carries. Nobody says who wrote which, so a writer may be on both sides of the split.

`python digits.py` shows what the start is worth: the same training from the reference, with and
without the frozen beginning, and from random weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from aigc_compress.loading import load_artifact
from aigc_compress.task import Quality

LABELLED = 200  # pictures to learn from; 300 more choose, the rest judge


def make_model() -> nn.Module:
    """The reference with a new last layer."""
    torch.manual_seed(0)
    network = load_artifact("cnn").payload
    network.head = nn.Linear(network.head.in_features, 10)
    return network


class Digits:
    name = "digits:Digits"

    def __init__(self) -> None:
        found = load_digits()
        order = np.random.default_rng(0).permutation(len(found.target))
        small = torch.from_numpy(found.images[order]).float()[:, None]  # 0 to 16
        large = F.interpolate(small, (28, 28), mode="bilinear", align_corners=False)
        images, labels = (large / 8 - 1).numpy(), found.target[order].astype(np.int64)
        cuts = {"train": (0, LABELLED), "validation": (LABELLED, 500), "test": (500, None)}
        self.splits = {
            name: (images[start:stop], labels[start:stop]) for name, (start, stop) in cuts.items()
        }

    def feeds(self, batch: int, *, seed: int, length: int = 1) -> dict[str, np.ndarray]:
        images, _ = self.splits["train"]
        return {"image": images[np.random.default_rng(seed).integers(len(images), size=batch)]}

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {"image": {0: "batch"}}

    def calibration(self, count: int, *, seed: int):
        for start in range(0, count, 32):
            yield self.feeds(min(32, count - start), seed=seed + start)

    def evaluate(
        self,
        runner,
        *,
        split,
        samples=None,
        seed=0,
        on_step=None,
        reference=None,
        with_details=True,
    ) -> Quality:
        images, labels = (each[:samples] for each in self.splits[split])
        logits = [
            runner.run({"image": images[at : at + 100]})["logits"]
            for at in range(0, len(images), 100)
        ]
        right = 100 * (np.concatenate(logits).argmax(1) == labels).mean()
        spread = float((right * (100 - right) / len(labels)) ** 0.5)
        return Quality("top-1 %", float(right), True, len(labels), split, spread)

    def exhibit(self, runner, *, seed=0):
        return None

    def batch(self, index: int, *, size: int, seed: int):
        """Pictures moved by up to three pixels, and their labels."""
        rng = np.random.default_rng(seed * 2**20 + index)
        images, labels = self.splits["train"]
        picks = rng.integers(len(images), size=size)
        padded = np.pad(images[picks], ((0, 0), (0, 0), (3, 3), (3, 3)), constant_values=-1)
        corners = rng.integers(0, 7, (size, 2))
        moved = [
            each[:, r : r + 28, c : c + 28] for each, (r, c) in zip(padded, corners, strict=False)
        ]
        return torch.from_numpy(np.stack(moved)), torch.from_numpy(labels[picks])

    def inputs(self, batch):
        return batch[:1]

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs.float(), batch[1].to(outputs.device))


def compare(steps: int = 300) -> None:
    """Train from three beginnings, three seeds each, and print what the test set says."""
    import tempfile

    from aigc_compress.artifact import Artifact, ModelSpec
    from aigc_compress.coach import Lesson
    from aigc_compress.engines.torch import TorchRunner
    from aigc_compress.models.own import allow
    from aigc_compress.models.training.coach import TaskCoach

    for name in ("digits:Digits", "digits:make_model"):
        allow(name)
    frozen = {"freeze": ["stem*", "stages*"], "freeze_steps": steps // 3}
    random = make_model()
    for part in random.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    ways = {
        "from the reference, frozen at first": (make_model(), frozen),
        "from the reference": (make_model(), {}),
        "only a new last layer": (make_model(), {"freeze": frozen["freeze"]}),
        "from random weights": (random, {}),
    }
    for told, (start, settings) in ways.items():
        found = []
        for seed in range(3):
            artifact = Artifact("torch", start, ModelSpec("digits:make_model", {}), "digits:Digits")
            whole = {"steps": steps, "batch_size": 32, "learning_rate": 2e-3, **settings}
            lesson = Lesson("digits:Digits", artifact, None, whole, seed)
            with tempfile.TemporaryDirectory() as folder:
                made = TaskCoach(device="cpu").train(lesson, Path(folder), lambda *_: None)
            found.append(Digits().evaluate(TorchRunner(made.payload), split="test").value)
        print(f"{told}: top-1 {np.mean(found):.2f} % ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    compare()
