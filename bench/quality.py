"""Quality of a loaded model: by its task, or as distance to the FP32 model's outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aigc_compress.errors import UsageError
from aigc_compress.passes.base import sqnr_db
from aigc_compress.task import Feeds, Quality, Runner

__all__ = ["MOST_SQNR_DB", "measure_sqnr"]

MOST_SQNR_DB = 200.0  # float64 itself resolves no more; equal outputs are reported as this


def measure_sqnr(reference: Runner, candidate: Runner, feeds: Sequence[Feeds]) -> Quality:
    """Return the SQNR of the worst output over all feeds, in dB; equal outputs count as 200.

    Whole-number and boolean outputs have no SQNR: they count as -10 log10 of the share of entries
    that differ, which is 20 dB where one in a hundred does.

    Raises:
        UsageError: there are no feeds.
    """
    if not feeds:
        raise UsageError("Quality needs at least one set of feeds.")
    wanted: dict[str, list[np.ndarray]] = {}
    found: dict[str, list[np.ndarray]] = {}
    for each in feeds:
        for store, runner in ((wanted, reference), (found, candidate)):
            for name, value in runner.run(each).items():
                store.setdefault(name, []).append(np.asarray(value).ravel())
    by_output = {
        name: _compare(np.concatenate(wanted[name]), np.concatenate(found[name])) for name in wanted
    }
    details = {"sqnr_db_by_output": by_output}
    worst = min(by_output.values())
    return Quality("SQNR dB", worst, True, len(feeds), "feeds", None, details)


def _compare(wanted: np.ndarray, found: np.ndarray) -> float:
    if wanted.shape != found.shape:
        return -MOST_SQNR_DB
    if np.issubdtype(wanted.dtype, np.floating):
        return float(np.clip(sqnr_db(wanted, found), -MOST_SQNR_DB, MOST_SQNR_DB))
    agreement = float((wanted == found).mean()) if wanted.size else 1.0
    noise = 1 - agreement
    return MOST_SQNR_DB if noise == 0 else float(-10 * np.log10(noise))
