"""How close drawn images stay to those that the FP32 model draws from the same latents."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from aigc_compress.bench.intervals import mean_measure
from aigc_compress.closeness import MOST_DB
from aigc_compress.task import MeasureDocument

from .features import Images, features

__all__ = ["compare_images"]

RANGE = 2.0  # images lie in [-1, 1]
Values = NDArray[np.float64]


def compare_images(reference: Images, candidate: Images) -> dict[str, MeasureDocument]:
    """Return means over pairs of images (N, 1, 28, 28) in [-1, 1].

    PSNR in dB (an image that equals its pair counts as 200), SSIM, and the cosine distance of the
    reference CNN's penultimate features.
    """
    psnr_db, ssim = _pixel_measures(reference, candidate)
    distance = _cosine_distance(features(reference), features(candidate))
    return {
        "paired_psnr_db": mean_measure(psnr_db, higher_is_better=True).document(),
        "paired_ssim": mean_measure(ssim, higher_is_better=True).document(),
        "paired_feature_cosine_distance": mean_measure(distance, higher_is_better=False).document(),
    }


def _pixel_measures(reference: Images, candidate: Images) -> tuple[Values, Values]:
    """Return per pair the PSNR, 10 log10(2^2 / MSE), and the SSIM (Wang et al. 2004), (N,) each."""
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    wanted, found = torch.from_numpy(reference), torch.from_numpy(candidate)
    psnr = peak_signal_noise_ratio(found, wanted, data_range=RANGE, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(found, wanted, data_range=RANGE, reduction="none")
    assert isinstance(ssim, torch.Tensor)  # a pair only where the full map is asked for
    return psnr.clamp(max=MOST_DB).double().numpy(), ssim.double().numpy()


def _cosine_distance(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> Values:
    """Return 1 - cos of the angle between rows (N, width), in [0, 2]; 1 beside a zero row."""
    r, v = reference.astype(np.float64), candidate.astype(np.float64)
    lengths = np.linalg.norm(r, axis=1) * np.linalg.norm(v, axis=1)
    return np.asarray(1 - (r * v).sum(1) / np.where(lengths == 0, 1.0, lengths))
