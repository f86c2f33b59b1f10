"""What `bench` is told and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from aigc_compress.bench.latency import LatencyPlan, Timing
from aigc_compress.bench.roofline import Limit
from aigc_compress.bench.statistics import RatioInterval, percentile_interval
from aigc_compress.bench.trust import Trust, read_surroundings

from .budget import Budget, Judgement
from .machine import describe_machine
from .workload import FeedOptions

__all__ = ["BenchOptions", "BenchResult", "Row"]

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class BenchOptions:
    """Everything that `bench` may be told.

    Attributes:
        engines: engines to run on; the first one runs the baseline.
        baseline: the model to compare with; None takes each group's first unquantized model.
        batches: sizes of the first dynamic axis in a timed call, each timed on its own.
        lengths: time steps in a timed call, for a model with a time axis, likewise.
        feeds: feeds for models without a task.
        budget: allowed drop; None takes the metric's default.
        samples: samples of the quality measurement; None takes the task's default.
        measures_quality: whether quality is measured at all.
        is_strict: whether a machine that was busy with other work is an error.
        seed: of feeds, order and statistics.
        plan: how latency is measured.
    """

    engines: tuple[str, ...] = ("ort",)
    baseline: str | None = None
    batches: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] = (1,)
    feeds: FeedOptions = field(default_factory=FeedOptions)
    budget: Budget | None = None
    samples: int | None = None
    measures_quality: bool = True
    is_strict: bool = False
    seed: int = 0
    plan: LatencyPlan = field(default_factory=LatencyPlan)


@dataclass(frozen=True)
class Row:
    """One model on one engine at one batch size and length.

    The speed-up of the baseline itself is the A/A control: the same file in processes of its own,
    which shows how large a difference chance alone makes here.
    """

    model: str
    engine: str
    batch: int
    length: int
    is_baseline: bool
    size_bytes: int
    timing: Timing
    speedup: RatioInterval
    judgement: Judgement | None
    cost: Mapping[str, int] | None = None
    limit: Limit | None = None

    def document(self) -> dict[str, Any]:
        """Return the row as JSON, raw block medians included."""
        speedup = self.speedup
        return {
            "model": self.model,
            "engine": self.engine,
            "batch": self.batch,
            "length": self.length,
            "is_baseline": self.is_baseline,
            "size_bytes": self.size_bytes,
            "latency_ms": self.timing.median_ms,
            "percentiles_ms": {
                f"p{percent}": asdict(percentile_interval(self.timing.calls_ms, percent))
                for percent in PERCENTILES
            },
            "load_ms": self.timing.load_ms,
            "first_ms": self.timing.first_ms,
            "warmup_calls": self.timing.warmup_calls,
            "peak_resident_bytes": self.timing.peak_bytes,
            "calls": len(self.timing.calls_ms),
            "blocks_ms": self.timing.blocks_ms.tolist(),
            "speedup": {"ratio": speedup.ratio, "low": speedup.low, "high": speedup.high},
            "verdict": f"A/A: {speedup.verdict}" if self.is_baseline else speedup.verdict,
            "cost": dict(self.cost) if self.cost else None,
            "roofline": self._roofline(),
            "quality": self.judgement.document() if self.judgement else None,
        }

    def _roofline(self) -> dict[str, Any] | None:
        if self.limit is None:
            return None
        efficiency = self.limit.efficiency(self.timing.median_ms)
        return {**asdict(self.limit), "efficiency": efficiency}


@dataclass(frozen=True)
class BenchResult:
    """All rows, group after group, and the machine they were measured on."""

    rows: tuple[Row, ...]
    options: BenchOptions
    notes: tuple[str, ...]
    trust: Trust

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document."""
        plan = self.options.plan
        return {
            "schema": "aigc-compress/bench/1",
            "machine": describe_machine() | read_surroundings(),
            "trust": self.trust.document(),
            "settings": asdict(plan) | {"seed": self.options.seed},
            "rows": [row.document() for row in self.rows],
            "notes": list(self.notes),
        }
