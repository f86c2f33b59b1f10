"""`pack`: a graph for storage, entropy-coded, and with few values per tensor where that is fine."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .api import judge, require_output, to_onnx
from .artifact import Artifact, onnx_bytes, save_onnx
from .budget import Budget, Judgement
from .engines.ort import OrtSession
from .errors import PassError
from .loading import load_artifact
from .packed import SUFFIX, packed
from .passes import Context, ShareConfig
from .pipeline import run_passes
from .task import OnStep, Runner, Split
from .workload import FeedOptions, Workload, make_workload

__all__ = ["LADDER", "PackResult", "pack"]

LADDER = (8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class PackResult:
    """What was packed, in bytes.

    Attributes:
        output: the file.
        plain: of the graph as it was.
        gzipped: of the same after gzip, which a web server would do.
        lossless: of the same after packing, no weight touched.
        size_bytes: of the file.
        values: that a tensor holds at most; None: no weight was touched.
        judgement: of the packed graph against the graph as it was; None: no weight was touched.
        refused: numbers of values that were outside the budget.
    """

    output: Path
    plain: int
    gzipped: int
    lossless: int
    size_bytes: int
    values: int | None = None
    judgement: Judgement | None = None
    refused: tuple[int, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document."""
        return {
            "schema": "aigc-compress/pack/1",
            "output": str(self.output),
            "size_bytes": {
                "plain": self.plain,
                "gzip": self.gzipped,
                "lossless": self.lossless,
                "packed": self.size_bytes,
            },
            "values": self.values,
            "quality": None if self.judgement is None else self.judgement.document(),
            "refused": list(self.refused),
        }


def pack(
    source: str | Path,
    output: Path,
    *,
    values: Sequence[int] = (),
    feeds: FeedOptions | None = None,
    budget: Budget | None = None,
    samples: int | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> PackResult:
    """Write a packed graph.

    Args:
        source: a model; a torch module is exported first.
        output: ends in `.onnx.xz`.
        values: how many values a tensor may hold at most, tried in this order until one is within
            the budget; none: no weight is touched.
        feeds: for a model without a task.
        budget: allowed loss from the source; None takes the metric's default.
        samples: of the quality measurement; None takes the task's default.
        seed: of feeds.
        on_step: called with (done, total) during long work.

    Raises:
        UsageError: the output's name, or a budget that does not fit the model.
        PassError: none of `values` is within the budget; nothing is written.
        OutputError: the file cannot be written.
    """
    require_output(output, source, suffix=SUFFIX)
    artifact = load_artifact(source)
    workload = make_workload(artifact, feeds or FeedOptions())
    graph = to_onnx(artifact, workload, seed=seed)
    content = onnx_bytes(graph)
    sizes = len(content), len(gzip.compress(content, mtime=0)), len(packed(content))
    if not values:
        save_onnx(graph, output)
        return PackResult(output, *sizes, output.stat().st_size)
    graph, count, judgement, refused = _shared(
        graph, workload, values, budget=budget, samples=samples, seed=seed, on_step=on_step
    )
    save_onnx(graph, output)
    return PackResult(output, *sizes, output.stat().st_size, count, judgement, refused)


def _shared(
    graph: Artifact,
    workload: Workload,
    values: Sequence[int],
    *,
    budget: Budget | None,
    samples: int | None,
    seed: int,
    on_step: OnStep | None,
) -> tuple[Artifact, int, Judgement, tuple[int, ...]]:
    """Return the first graph of the ladder that is within the budget, with the test's judgement."""
    context = Context(workload.check_feeds(), seed=seed)
    refused: list[int] = []
    metric = ""
    for count in values:
        candidate = run_passes(graph, [("share", ShareConfig(values=count))], context)
        sessions = [OrtSession(each, threads=os.cpu_count() or 1) for each in (graph, candidate)]

        def judged(split: Split, pair: Sequence[Runner] = sessions) -> Judgement:
            return judge(
                pair,
                [workload] * 2,
                samples=samples,
                budget=budget,
                seed=seed,
                on_step=on_step,
                split=split,
            )[1]

        judgement = judged("validation")  # chosen on the one, confirmed on the other
        if judgement.within:
            judgement = judged("test")
        if judgement.within:
            return candidate, count, judgement, tuple(refused)
        refused.append(count)
        metric = judgement.quality.metric
    raise PassError(
        f"{metric} is outside the budget with {', '.join(map(str, refused))}"
        " values per tensor. Allow more of them, or pack without --values."
    )
