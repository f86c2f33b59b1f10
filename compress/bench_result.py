"""What `bench` is told and what it found."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aigc_compress.bench.latency import LatencyPlan
from aigc_compress.bench.profile import Layer
from aigc_compress.bench.roofline import Limit, Peaks
from aigc_compress.bench.statistics import RatioInterval, percentile_interval
from aigc_compress.bench.stopping import Reason
from aigc_compress.bench.timing import Timing
from aigc_compress.bench.trust import Trust

from .artifact import model_files
from .budget import Budget, Judgement
from .storage import digest_file
from .workload import FeedOptions

__all__ = ["SCHEMA", "BenchOptions", "BenchResult", "FileFacts", "Row", "settings_document"]

SCHEMA = "aigc-compress/bench/1"
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class BenchOptions:
    """Everything that `bench` may be told.

    Attributes:
        engines: engines to run on, or `all` that are here; the first one runs the baseline.
        baseline: the model to compare with; None takes each group's first unquantized model.
        batches: sizes of the first dynamic axis in a timed call, each timed on its own.
        lengths: time steps in a timed call, for a model with a time axis, likewise.
        feeds: feeds for models without a task.
        budget: allowed drop; None takes the metric's default.
        samples: samples of the quality measurement; None takes the task's default.
        measures_quality: whether quality is measured at all.
        profiles_layers: whether the time of every layer is asked of the engine (`ort` alone).
        leaves_out: whether an engine that fails on a model is left out with a note, and no error;
            `all` engines are.
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
    profiles_layers: bool = False
    leaves_out: bool = False
    is_strict: bool = False
    seed: int = 0
    plan: LatencyPlan = field(default_factory=LatencyPlan)


@dataclass(frozen=True)
class FileFacts:
    """The file behind a row: its bytes, its bytes after gzip, and its SHA-256."""

    size_bytes: int
    compressed_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileFacts:
        """Look at a model file; sizes count the external data files that it names too."""
        files = model_files(path)
        size = sum(each.stat().st_size for each in files)
        return cls(size, sum(map(_gzip_bytes, files)), digest_file(path))


@dataclass(frozen=True)
class Row:
    """One model on one engine at one batch size and length.

    The speed-up of the baseline itself is the A/A control: the same file in processes of its own,
    which shows how large a difference chance alone makes here; `control` is its timing.
    """

    model: str
    engine: str
    batch: int
    length: int
    is_baseline: bool
    file: FileFacts
    timing: Timing
    speedup: RatioInterval
    judgement: Judgement | None = None
    cost: Mapping[str, int] | None = None
    limit: Limit | None = None
    control: Timing | None = None
    ended: Reason = "all processes"
    operators: Mapping[str, Any] | None = None
    layers: tuple[Layer, ...] | None = None

    @property
    def size_bytes(self) -> int:
        """Return the size on disk, external data included."""
        return self.file.size_bytes

    @property
    def samples_per_second(self) -> float:
        """Return samples per second at the median: batch over latency or wall time per call."""
        return 1e3 * self.batch / self.timing.median_ms

    def document(self) -> dict[str, Any]:
        """Return the row as JSON, the raw times of all calls included."""
        return {
            "model": self.model,
            "engine": self.engine,
            "batch": self.batch,
            "length": self.length,
            "is_baseline": self.is_baseline,
            **asdict(self.file),
            **self._times(),
            **self._comparison(),
            "cost": dict(self.cost) if self.cost else None,
            "roofline": self._roofline(),
            "operators": dict(self.operators) if self.operators else None,
            "layers": [each.document() for each in self.layers] if self.layers else None,
            "quality": self.judgement.document() if self.judgement else None,
            "blocks_ms": self.timing.blocks_ms.tolist(),
            "calls_ns": self.timing.calls_ns(),
            "processes": self.timing.about_processes(),
            "control": _raw(self.control) if self.control else None,
        }

    def _times(self) -> dict[str, Any]:
        timing = self.timing
        return {
            "latency_ms": timing.median_ms,
            "samples_per_second": self.samples_per_second,
            "percentiles_ms": {
                f"p{percent}": asdict(percentile_interval(timing.calls_ms, percent))
                for percent in PERCENTILES
            },
            "load_ms": timing.load_ms,
            "first_ms": timing.first_ms,
            "warmup_calls": timing.warmup_calls,
            "unsteady_processes": timing.unsteady_processes,
            "peak_resident_bytes": timing.peak_bytes,
            "calls": len(timing.calls_ms),
        }

    def _comparison(self) -> dict[str, Any]:
        verdict = self.speedup.verdict
        return {
            "speedup": asdict(self.speedup),
            "verdict": f"A/A: {verdict}" if self.is_baseline else verdict,
            "ended": self.ended,
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
    machine: Mapping[str, Any]
    peaks: Peaks | None = None
    feeds_sha256: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document."""
        return {
            "schema": SCHEMA,
            "machine": dict(self.machine),
            "trust": self.trust.document(),
            "settings": settings_document(self.options.plan),
            "peaks": asdict(self.peaks) if self.peaks else None,
            "feeds_sha256": list(self.feeds_sha256),
            "rows": [row.document() for row in self.rows],
            "notes": list(self.notes),
        }


def settings_document(plan: LatencyPlan) -> dict[str, Any]:
    """Return how latency was measured, what the engines were left to decide included."""
    spinning = "allowed, the engine's default" if plan.threads > 1 else "none: no pool at 1 thread"
    return {**asdict(plan), "inter_op_threads": 1, "spinning": spinning}


def _gzip_bytes(path: Path) -> int:
    """Return a file's size after gzip (level 6, as a download would be), read piece by piece."""
    packer = zlib.compressobj(level=6, wbits=31)
    size = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            size += len(packer.compress(piece))
    return size + len(packer.flush())


def _raw(timing: Timing) -> dict[str, Any]:
    return {"calls_ns": timing.calls_ns(), "processes": timing.about_processes()}
