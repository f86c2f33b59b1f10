"""How far a recurrent model drifts from its FP32 form while both read the same text.

Each keeps its own state, so errors of one step enter the next: they may fade or pile up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.bench.intervals import mean_measure
from aigc_compress.task import Measure, Runner

__all__ = ["compare_streams"]

STEPS = (1, 16, 64, 256, 1024)
State = Mapping[str, NDArray[np.float32]]
Values = NDArray[np.float64]


def compare_streams(
    reference: Runner, candidate: Runner, streams: NDArray[np.int64], zero_state: State
) -> dict[str, Any]:
    """Return the drift of the state and the agreement on the next character, up to step 1,024.

    The drift at a step is |h - h_fp32| / |h_fp32|, the mean over the streams; its value is that of
    the last step. `grows` tells whether it is larger there than at the step listed before, beyond
    what chance among the streams explains; None where that cannot be told.

    Args:
        reference: runs the FP32 model.
        candidate: runs the other one.
        streams: tokens int64 (N, T + 1).
        zero_state: the state before the first character, by input name.
    """
    length = min(streams.shape[1] - 1, STEPS[-1])
    ends = [*(step for step in STEPS if step < length), length]
    walks = (_walk(runner, streams, ends, zero_state) for runner in (reference, candidate))
    drifts, is_same = [], []
    for wanted, found in zip(*walks, strict=True):
        drifts.append(_relative_difference(wanted["h_out"], found["h_out"]))
        is_same.append(wanted["logits"].argmax(-1) == found["logits"].argmax(-1))
    return {
        "state_drift": _describe(drifts, ends),
        "agreement_with_fp32_percent": _agreement(np.concatenate(is_same, axis=1)).document(),
    }


def _walk(
    runner: Runner, streams: NDArray[np.int64], ends: Sequence[int], state: State
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the outputs of each piece of the streams between two ends."""
    for start, stop in pairwise([0, *ends]):
        outputs = runner.run({"tokens": streams[:, start:stop], **state})
        state = {name: outputs[f"{name}_out"] for name in state}
        yield outputs


def _relative_difference(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> Values:
    """Return |found - wanted| / |wanted| of states (layers, N, hidden) per stream, (N,)."""
    distance, length = (
        np.linalg.norm(each.astype(np.float64), axis=(0, 2)) for each in (found - wanted, wanted)
    )
    ratio = np.divide(distance, length, where=length > 0, out=np.full_like(length, np.inf))
    return np.where(distance == 0, 0.0, ratio)


def _describe(drifts: Sequence[Values], ends: Sequence[int]) -> dict[str, Any]:
    means = [mean_measure(drift, higher_is_better=False) for drift in drifts]
    by_step = [
        {"step": end, "relative_difference": mean.document()["value"]}
        for end, mean in zip(ends, means, strict=True)
    ]
    return {**means[-1].document(), "by_step": by_step, "grows": _grows(drifts)}


def _grows(drifts: Sequence[Values]) -> bool | None:
    if len(drifts) < 2 or not np.isfinite(drifts[-2:]).all():
        return None
    change = mean_measure(drifts[-1] - drifts[-2], higher_is_better=False)
    return None if change.low is None else change.low > 0


def _agreement(is_same: NDArray[np.bool_]) -> Measure:
    """Return the share of (N, T) in percent.

    Characters of one stream hang together, so the interval rests on the N streams, while `samples`
    counts characters.
    """
    share = mean_measure(100.0 * is_same.mean(1), higher_is_better=True)
    low, high = _percent(share.low), _percent(share.high)
    return replace(share, samples=is_same.size, low=low, high=high)


def _percent(value: float | None) -> float | None:
    return None if value is None else min(max(value, 0.0), 100.0)
