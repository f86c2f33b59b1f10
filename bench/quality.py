"""Quality without a task: the distance of a model's outputs to those of the FP32 model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.closeness import agreement_db
from aigc_compress.errors import UsageError
from aigc_compress.task import Feeds, Quality, Runner

__all__ = ["measure_sqnr"]


def measure_sqnr(reference: Runner, candidate: Runner, feeds: Sequence[Feeds]) -> Quality:
    """Return the agreement of the worst output over all feeds, in dB (see `closeness`).

    Raises:
        UsageError: there are no feeds.
    """
    if not feeds:
        raise UsageError("Quality needs at least one set of feeds.")
    wanted, found = _gather(reference, feeds), _gather(candidate, feeds)
    by_output = {name: agreement_db(wanted[name], found[name]) for name in wanted}
    details = {"sqnr_db_by_output": by_output}
    return Quality("SQNR dB", min(by_output.values()), True, len(feeds), "feeds", None, details)


def _gather(runner: Runner, feeds: Sequence[Feeds]) -> dict[str, NDArray[Any]]:
    """Return every output over all feeds as one flat array."""
    parts: dict[str, list[NDArray[Any]]] = {}
    for each in feeds:
        for name, value in runner.run(each).items():
            parts.setdefault(name, []).append(np.asarray(value).ravel())
    return {name: np.concatenate(values) for name, values in parts.items()}
