"""Quality without a task: the distance of a model's outputs to those of the FP32 model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.closeness import agreement_db, cosine_similarity
from aigc_compress.errors import UsageError
from aigc_compress.task import Feeds, Measure, MeasureDocument, Quality, Runner

__all__ = ["measure_sqnr"]

Outputs = Mapping[str, NDArray[Any]]


def measure_sqnr(reference: Runner, candidate: Runner, feeds: Sequence[Feeds]) -> Quality:
    """Return the agreement of the worst output over all feeds, in dB (see `closeness`).

    The details hold the agreement of every output, the cosine similarity of those that are floats
    (whole numbers are labels as a rule, which have no direction), and the worst sample: the set of
    feeds and the output that agree least.

    Raises:
        UsageError: there are no feeds.
    """
    if not feeds:
        raise UsageError("Quality needs at least one set of feeds.")
    wanted, found = ([runner.run(each) for each in feeds] for runner in (reference, candidate))
    pairs = {name: (_flat(wanted, name), _flat(found, name)) for name in wanted[0]}
    by_output = {name: agreement_db(*pair) for name, pair in pairs.items()}
    details = {
        "sqnr_db_by_output": by_output,
        "cosine_by_output": {
            name: _measure(cosine_similarity(*pair), len(feeds))
            for name, pair in pairs.items()
            if np.issubdtype(pair[0].dtype, np.floating)
        },
        "worst_sample_db": _worst_sample(wanted, found),
    }
    return Quality("SQNR dB", min(by_output.values()), True, len(feeds), "feeds", None, details)


def _flat(outputs: Sequence[Outputs], name: str) -> NDArray[Any]:
    """Return one output over all feeds as one flat array."""
    return np.concatenate([np.asarray(each[name]).ravel() for each in outputs])


def _worst_sample(wanted: Sequence[Outputs], found: Sequence[Outputs]) -> dict[str, Any]:
    """Return the least agreement of one output on one set of feeds, and which these are."""
    agreement = {
        (index, name): agreement_db(np.asarray(value), np.asarray(found[index][name]))
        for index, outputs in enumerate(wanted)
        for name, value in outputs.items()
    }
    index, name = min(agreement, key=agreement.__getitem__)
    return {**_measure(agreement[index, name], len(wanted)), "index": index, "output": name}


def _measure(value: float, samples: int) -> MeasureDocument:
    return Measure(value, True, samples).document()
