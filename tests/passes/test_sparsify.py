"""Zeros in single weights: where they may be, that trainings keep them, what is told of them."""

import numpy as np
import pytest
import torch
from torch import nn

from aigc_compress.artifact import Artifact
from aigc_compress.errors import PassError
from aigc_compress.models import data
from aigc_compress.models.cnn import CnnConfig
from aigc_compress.models.training.base import seeded
from aigc_compress.models.training.cnn import CnnTrainer, CnnTraining
from aigc_compress.passes import Context
from aigc_compress.passes.sparsify import SparsifyConfig, SparsifyPass, two_of_four


class Net(nn.Module):
    input_names, output_names = ("x",), ("y",)

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.second = nn.Conv2d(16, 32, 3)
        self.up = nn.ConvTranspose2d(32, 16, 4)
        self.head = nn.Linear(64, 64)


def sparse(config, module=None):
    artifact = Artifact("torch", (module or Net()).eval())
    return SparsifyPass().run(artifact, config, Context(()))


@pytest.mark.parametrize("shape", [(6, 8), (5, 12, 3, 3)])
def test_two_of_every_four_inputs_stay_and_they_are_the_larger(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    fours = two_of_four(weight).movedim(1, -1).reshape(-1, 4)
    before = weight.movedim(1, -1).reshape(-1, 4)
    assert ((fours != 0).sum(-1) == 2).all()
    kept = torch.where(fours != 0, fours, np.inf).abs().amin(-1)
    gone = torch.where(fours == 0, before, 0.0).abs().amax(-1)
    assert (kept >= gone).all()
    assert torch.equal(fours[fours != 0], before[fours != 0])


def test_what_stays_dense_is_told_with_its_reason():
    made = sparse(SparsifyConfig())
    told = made.history[-1].numbers
    assert told["zeros"] == {"second.weight": 0.5, "head.weight": 0.5}
    assert told["dense"] == {
        "first.weight": "fewer than 1024 elements",
        "up.weight": "ConvTranspose2d has no sparse kernels",
    }
    assert "Ampere" in told["faster"]
    loose = sparse(SparsifyConfig(pattern="unstructured", ratio=0.75)).history[-1].numbers
    assert set(loose["zeros"]) == {"second.weight", "up.weight", "head.weight"}
    assert all(abs(each - 0.75) < 1e-3 for each in loose["zeros"].values())
    assert "no engine" in loose["faster"]
    with pytest.raises(PassError, match="fewer than 100000"):
        sparse(SparsifyConfig(least=100_000))


def test_training_goes_on_and_zeros_stay():
    config = CnnTraining(
        model=CnnConfig(widths=(8, 16), blocks=(1, 1)), batch_size=8, precision="fp32", steps=4
    )
    images = data.calibration_images()
    network = CnnTrainer(config, device=torch.device("cpu"), images=images).network.eval()
    pruned = SparsifyPass().run(Artifact("torch", network), SparsifyConfig(least=64), Context(()))
    trainer = CnnTrainer(config, device=torch.device("cpu"), images=images, start=pruned)
    for index in range(4):
        with seeded(0, index + 1):
            trainer.step(index)
    before, after = (dict(each.named_parameters()) for each in (pruned.payload, trainer.average))
    for name in pruned.history[-1].numbers["zeros"]:
        assert torch.equal(before[name] == 0, after[name] == 0), name
        assert not torch.equal(before[name], after[name])
