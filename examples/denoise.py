"""A model and a task of one's own: a small U-Net that takes noise out of pictures of clothes.

Train it as you would, here in plain torch (some minutes on two cores), then prune, distill and
quantize it:

    cd examples
    python denoise.py
    aigc-compress run denoise.yaml

`make_model` returns the trained model. Everything else that aigc-compress needs to know stands in
the task, `Denoise`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from aigc_compress.models import data
from aigc_compress.task import Quality

WEIGHTS = Path(__file__).with_name("denoise.weights.pt")
NOISE = 0.5  # standard deviation, where pixels lie in [-1, 1]


class UNet(nn.Module):
    """Noisy pictures (N, 1, 28, 28) -> clean ones of the same shape."""

    input_names = ("noisy",)
    output_names = ("clean",)

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = block(1, width)
        self.down = block(width, 2 * width, stride=2)
        self.deep = block(2 * width, 4 * width, stride=2)
        self.up = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join = block(4 * width, 2 * width)
        self.top = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.last = nn.Sequential(block(2 * width, width), nn.Conv2d(width, 1, 1))

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        high = self.stem(noisy)
        middle = self.down(high)
        joined = self.join(torch.cat([self.up(self.deep(middle)), middle], 1))
        return noisy + self.last(torch.cat([self.top(joined), high], 1))


def block(width: int, out: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(width, out, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


def make_model() -> nn.Module:
    model = UNet()
    model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return model


class Denoise:
    """The task: what goes in, how good the output is, and what a training step is."""

    name = "denoise:Denoise"

    def __init__(self) -> None:
        self.splits = {
            "train": data.to_unit_range(data.calibration_images().pixels),
            "validation": data.to_unit_range(data.images("validation").pixels[:1000]),
            "test": data.to_unit_range(data.images("test").pixels[:1000]),
        }

    # What every task has: feeds, axes that stay dynamic, calibration data, the quality.

    def feeds(self, batch: int, *, seed: int, length: int = 1) -> dict[str, np.ndarray]:
        noisy, _ = self.drawn("train", batch, seed)
        return {"noisy": noisy}

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {"noisy": {0: "batch"}}

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
        clean = self.splits[split][:samples]
        noisy = noised(clean, np.random.default_rng(1000 + seed))
        errors = []
        for start in range(0, len(clean), 100):
            made = runner.run({"noisy": noisy[start : start + 100]})["clean"]
            errors.append(np.square(made - clean[start : start + 100]).mean((1, 2, 3)))
            if on_step:
                on_step(start + len(made), len(clean))
        psnr = 10 * np.log10(4 / np.concatenate(errors))  # the range is 2, from -1 to 1
        spread = float(psnr.std() / len(psnr) ** 0.5)
        return Quality("PSNR dB", float(psnr.mean()), True, len(psnr), split, spread)

    def exhibit(self, runner, *, seed=0):
        return None

    # What a task has whose models can be trained and distilled.

    def batch(self, index: int, *, size: int, seed: int):
        noisy, clean = self.drawn("train", size, seed * 2**20 + index)
        return torch.from_numpy(noisy), torch.from_numpy(clean)

    def inputs(self, batch):
        return batch[:1]

    def loss(self, outputs, batch):
        return F.mse_loss(outputs.float(), batch[1].to(outputs.device))

    def drawn(self, split: str, count: int, seed: int):
        rng = np.random.default_rng(seed)
        clean = self.splits[split][rng.integers(len(self.splits[split]), size=count)]
        return noised(clean, rng), clean


def noised(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (clean + rng.normal(0, NOISE, clean.shape)).astype(np.float32)


def train(steps: int = 400) -> None:
    """What you have already: your own training."""
    torch.manual_seed(0)
    model, task = UNet().train(), Denoise()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(steps):
        batch = task.batch(step, size=32, seed=0)
        loss = task.loss(model(*task.inputs(batch)), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1} of {steps}: mean squared error {float(loss):.4f}")
    torch.save(model.state_dict(), WEIGHTS)


if __name__ == "__main__":
    train()
