"""The quick meter that passes are handed: the same measurement, on a budget of seconds."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aigc_compress.artifact import Artifact, save_onnx
from aigc_compress.meter import NodeTime
from aigc_compress.task import Feeds

from .latency import Contest, Contestant, LatencyPlan, run_contest
from .profile import profile_outputs
from .statistics import RatioInterval

__all__ = ["QuickMeter", "quick_plan"]

FIRST = "ort"


@dataclass(frozen=True)
class QuickMeter:
    """Compares and times ONNX artifacts on ONNX Runtime within about `budget_seconds`.

    See `Meter` and `Clock`.
    """

    budget_seconds: float = 3.0
    threads: int = 1
    seed: int = 0

    def compare(
        self,
        baseline: Artifact,
        candidates: Sequence[Artifact],
        feeds: Feeds,
        engines: Sequence[str] = (),
    ) -> list[RatioInterval]:
        """Return the speed-up of every candidate; raises AigcCompressError like `run_contest`.

        The budget is that of two models; more of them get more time.
        """
        budget = self.budget_seconds * max(1.0, (len(candidates) + 1) / 2)
        plan = quick_plan(budget, LatencyPlan(threads=self.threads, seed=self.seed))
        contest = _contest([baseline, *candidates], feeds, plan, engines and [FIRST, *engines])
        return [contest.speedup(1 + index) for index in range(len(candidates))]

    def milliseconds(self, artifacts: Sequence[Artifact], feeds: Feeds) -> list[float]:
        """Return the median times of a call in three fresh processes; raises as `compare` does."""
        plan = replace(
            quick_plan(self.budget_seconds, LatencyPlan(threads=self.threads, seed=self.seed)),
            processes=3,
            stops_early=False,
        )
        return [timing.median_ms for timing in _contest(artifacts, feeds, plan).timings]

    def profile(self, artifact: Artifact, feeds: Feeds) -> Mapping[str, NodeTime]:
        """Return the times of nodes by their first output; raises PassError."""
        return profile_outputs(artifact.payload, feeds, threads=self.threads)


def quick_plan(budget_seconds: float, plan: LatencyPlan) -> LatencyPlan:
    """Return a plan with short blocks that ends once the verdict is clear or the budget is used up.

    Three processes run in any case, which costs two models of about 1 ms some two seconds; a
    larger budget buys more processes, and so finds smaller differences.
    """
    return replace(
        plan,
        blocks=4,
        block_ms=15.0,
        warmup_ms=30.0,
        max_seconds=budget_seconds,
        precision=None,
    )


def _contest(
    artifacts: Sequence[Artifact], feeds: Feeds, plan: LatencyPlan, engines: Sequence[str] = ()
) -> Contest:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.onnx" for index in range(len(artifacts))]
        for artifact, path in zip(artifacts, paths, strict=True):
            save_onnx(artifact, path)
        runners = engines or [FIRST] * len(paths)
        pairs = zip(paths, runners, strict=True)
        return run_contest([Contestant(*pair) for pair in pairs], feeds, plan)
