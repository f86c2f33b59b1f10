"""What a pass is: artifact in, new artifact out, numbers checked, nothing shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from aigc_compress.artifact import Artifact
from aigc_compress.task import Feeds, OnStep

__all__ = ["Context", "FeedSource", "Pass", "sqnr_db"]

FeedSource = Callable[[int], "list[Feeds]"]


def _quiet(_done: int, _total: int) -> None: ...


@dataclass(frozen=True)
class Context:
    """What a pass may use beside its artifact.

    Attributes:
        check_feeds: sets of feeds of different sizes; a pass proves itself on them.
        calibration: sets of feeds that the ranges of activations are read from.
        seed: of everything random.
        on_step: called with (done, total) on long work.
        notes: what calibration and checks were made with, told in the result.
    """

    check_feeds: tuple[Feeds, ...]
    calibration: tuple[Feeds, ...] = ()
    seed: int = 0
    on_step: OnStep = field(default=_quiet)


class Pass(Protocol):
    """One step of the line; it knows no screen, no clock and no other pass."""

    name: str
    config: type[BaseModel]

    def run(self, artifact: Artifact, config: BaseModel, context: Context) -> Artifact:
        """Return the artifact that this pass makes; raises PassError when it breaks a promise."""
        ...


def sqnr_db(reference: NDArray[np.floating], value: NDArray[np.floating]) -> float:
    """Return the signal-to-quantization-noise ratio, 10 log10(sum r^2 / sum (r - v)^2), in dB.

    Equal arrays give infinity; a NaN or infinity in `value` alone gives minus infinity.
    """
    r, v = reference.astype(np.float64), value.astype(np.float64)
    if r.shape != v.shape or not np.isfinite(v).all():
        return float("-inf")
    noise = float(((r - v) ** 2).sum())
    signal = float((r**2).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")
