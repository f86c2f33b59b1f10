"""What logits tell beside top-1 accuracy: top-5, calibration, and agreement with FP32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aigc_compress.bench.intervals import share_percent
from aigc_compress.task import Measure

__all__ = ["agreement", "describe"]

BINS = 15
Logits = NDArray[np.float32]
Labels = NDArray[np.uint8]


def describe(logits: Logits, labels: Labels) -> dict[str, Any]:
    """Return top-1 and top-5 accuracy and the expected calibration error, all in percent.

    Args:
        logits: float32 (N, classes).
        labels: the right classes, (N,).
    """
    in_order = np.argsort(-logits, axis=1, kind="stable")  # NaN comes last
    is_right = in_order == labels[:, None]
    return {
        "top_1_percent": share_percent(is_right[:, 0]).document(),
        "top_5_percent": share_percent(is_right[:, :5].any(1)).document(),
        "calibration_error_percent": _calibration_error(logits, labels).document(),
    }


def agreement(reference: Logits, candidate: Logits) -> dict[str, Any]:
    """Return the share of samples that both put into the same class, in percent."""
    is_same = reference.argmax(1) == candidate.argmax(1)
    return {"agreement_with_fp32_percent": share_percent(is_same).document()}


def _calibration_error(logits: Logits, labels: Labels) -> Measure:
    """Return sum over bins of n_b / n |accuracy - mean confidence| (Guo et al. 2017, equation 3).

    NaN where a logit is not finite: there is no confidence then.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    if not np.isfinite(logits).all():
        return Measure(float("nan"), False, len(labels))
    # Given logits that all lie in [0, 1], the metric would take them for probabilities.
    confidences = torch.from_numpy(logits).softmax(1)
    targets = torch.from_numpy(labels.astype(np.int64))
    error = multiclass_calibration_error(
        confidences, targets, num_classes=logits.shape[1], n_bins=BINS, norm="l1"
    )
    return Measure(100 * float(error), False, len(labels))
