"""Classify pictures of clothes: top-1 accuracy on Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.models import data
from aigc_compress.task import Exhibit, Feeds, OnStep, Quality, Runner, Split, Use, batches

__all__ = ["ClassifyClothes"]

BATCH = 100


class ClassifyClothes:
    """Image float32 (N, 1, 28, 28) in [-1, 1] -> logits (N, 10)."""

    name = "cnn"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def feeds(self, batch: int, *, seed: int, length: int = 1) -> dict[str, NDArray[Any]]:
        """Return `batch` calibration images drawn with `seed`."""
        pixels = data.calibration_images().pixels
        picks = np.random.default_rng(seed).integers(len(pixels), size=batch)
        return {"image": data.to_unit_range(pixels[picks])}

    def use(self) -> Use:
        """Return how an app classifies: `data.to_unit_range` as data."""
        scale = {"scale": 1 / 127.5, "offset": -1.0}
        processing = {"image": "image", "logits": "logits", **scale, "labels": [*data.CLASSES]}
        meanings = {"image": "pixels from -1, black, to 1, white", "logits": "one per class"}
        return Use("classes", processing, meanings, (data.IMAGES_LICENCE,))

    def dynamic_axes(self) -> Mapping[str, Mapping[int, str]]:
        """Return the batch axis."""
        return {"image": {0: "batch"}}

    def calibration(self, count: int, *, seed: int) -> Iterator[Feeds]:
        """Yield up to 1,000 training images in batches, in an order drawn with `seed`."""
        pixels = data.calibration_images().pixels
        order = np.random.default_rng(seed).permutation(len(pixels))[:count]
        for part in batches(len(order), BATCH):
            yield {"image": data.to_unit_range(pixels[order[part]])}

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
        """Measure top-1 accuracy in percent on the first `samples` images of the split.

        The details hold top-5 and the calibration error, and with a reference the share of images
        that both put into the same class; without details they are empty.
        """
        from .classification import agreement, describe

        pixels, labels = (each[: samples or None] for each in data.images(split))
        logits = _classify(runner, pixels, on_step)
        details = describe(logits, labels) if with_details else {}
        if with_details and reference is not None and reference is not runner:
            details |= agreement(_classify(reference, pixels), logits)
        accuracy = float((logits.argmax(1) == labels).mean())
        spread = 100 * float(np.sqrt(accuracy * (1 - accuracy) / len(labels)))  # binomial
        return Quality("top-1 %", 100 * accuracy, True, len(labels), split, spread, details)

    def exhibit(self, runner: Runner, *, seed: int = 0) -> Exhibit | None:
        """Return None: a class is nothing to look at."""
        return None


def _classify(
    runner: Runner, pixels: NDArray[np.uint8], on_step: OnStep | None = None
) -> NDArray[np.float32]:
    logits = []
    for part in batches(len(pixels), BATCH):
        logits.append(runner.run({"image": data.to_unit_range(pixels[part])})["logits"])
        if on_step:
            on_step(part.stop, len(pixels))
    return np.concatenate(logits)
