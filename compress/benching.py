"""`bench`: models against their FP32 baseline, by latency and by quality on the same files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from aigc_compress.bench.counting import count_costs, total_cost
from aigc_compress.bench.latency import Contestant, LatencyPlan, Timing, measure_latency
from aigc_compress.bench.roofline import Limit, limit_of, load_peaks
from aigc_compress.bench.statistics import (
    RatioInterval,
    percentile_interval,
    ratio_of_medians,
)
from aigc_compress.bench.trust import Trust, Watch, read_surroundings

from .api import QuantizeOptions, judge, quantize, to_onnx
from .artifact import Artifact, graph_tensors, save_onnx
from .budget import Budget, Judgement
from .engines import check_feeds, get_engine
from .errors import AigcCompressError, UsageError
from .loading import REFERENCE_NAMES, load_artifact, resolve_source
from .machine import describe_machine
from .task import Feeds, OnStep
from .workload import FeedOptions, Workload, make_workload

__all__ = ["BenchOptions", "BenchResult", "Row", "bench_models", "workspace_sources"]

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


@dataclass(frozen=True)
class _Entry:
    """A model that takes part: under which name, from which artifact, in which ONNX form."""

    name: str
    source: Artifact
    graph: Artifact
    path: Path
    graph_path: Path

    @property
    def is_quantized(self) -> bool:
        return any(step.name == "quantize" for step in self.source.history)


def bench_models(
    sources: Sequence[str | Path],
    options: BenchOptions | None = None,
    *,
    on_step: OnStep | None = None,
) -> BenchResult:
    """Measure models against a baseline; models with other inputs form groups of their own.

    Args:
        sources: references, `.pt` and `.onnx` files. None at all takes the models in the current
            folder, or the shipped references where there are none: each in FP32 and in INT8.
        options: see BenchOptions.
        on_step: called with (done, total) during the measurements.

    Raises:
        UsageError: a source or an option is wrong.
        NotOnThisMachineError: an engine cannot run here.
    """
    options = options or BenchOptions()
    for name in options.engines:
        get_engine(name)
    if not options.feeds.has_no_files and (options.batches, options.lengths) != ((1,), (1,)):
        raise UsageError("Batch size and length are those of the .npz; drop --batch and --length.")
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        names = list(sources) or workspace_sources(Path.cwd())
        if names:
            paths: dict[str, str | Path] = {str(name): name for name in names}
        else:
            paths = _reference_ladder(work)
        if options.baseline is not None:
            paths = {options.baseline: options.baseline, **paths}
        entries, workloads = _open(paths, options, work)
        rows: list[Row] = []
        notes: list[str] = []
        for key, group in _groups(entries).items():
            ordered = _baseline_first(group, options.baseline)
            rows += _measure(ordered, workloads[key], options, on_step)
            notes += [note for note in workloads[key].notes if note not in notes]
    trust = watch.stop()
    if trust.complaint and options.is_strict:
        raise AigcCompressError(f"The machine was not quiet: {trust.complaint}.")
    return BenchResult(tuple(rows), options, tuple(notes), trust)


def workspace_sources(folder: Path) -> list[Path]:
    """Return the models in a folder, by name: `.pt` and `.onnx` files."""
    found = (p for p in folder.iterdir() if p.suffix in (".pt", ".onnx") and p.is_file())
    return sorted(path.relative_to(folder) for path in found)


def _reference_ladder(work: Path) -> dict[str, str | Path]:
    """Return every shipped reference in FP32 and, quantized into `work`, in INT8."""
    paths: dict[str, str | Path] = {}
    quick = QuantizeOptions(samples=640, plan=LatencyPlan(processes=2, blocks=2))
    for name in REFERENCE_NAMES:
        quantized = work / f"{name}.int8.onnx"
        quantize(name, quantized, quick)
        paths |= {name: name, f"{name}.int8": quantized}
    return paths


def _open(
    paths: Mapping[str, str | Path], options: BenchOptions, work: Path
) -> tuple[list[_Entry], dict[str, Workload]]:
    """Load every source, and export what an ONNX engine needs exported."""
    entries: list[_Entry] = []
    workloads: dict[str, Workload] = {}
    for index, (name, source) in enumerate(paths.items()):
        artifact = load_artifact(source)
        workload = make_workload(artifact, options.feeds)
        graph = to_onnx(artifact, workload, seed=options.seed)
        path = resolve_source(source)
        graph_path = path
        if artifact.stage == "torch":
            graph_path = work / f"{index}.onnx"
            save_onnx(graph, graph_path)
        entry = _Entry(name, artifact, graph, path, graph_path)
        entries.append(entry)
        workloads.setdefault(_key(entry), workload)
    return entries, workloads


def _key(entry: _Entry) -> str:
    inputs, outputs = graph_tensors(entry.graph.payload)
    face = [(t.name, t.dtype, [a for a in t.shape if isinstance(a, int)]) for t in inputs]
    return f"{entry.graph.task} {face} {[t.name for t in outputs]}"


def _groups(entries: Sequence[_Entry]) -> dict[str, list[_Entry]]:
    groups: dict[str, list[_Entry]] = {}
    for entry in entries:
        groups.setdefault(_key(entry), []).append(entry)
    return groups


def _baseline_first(group: list[_Entry], baseline: str | None) -> list[_Entry]:
    named = [entry for entry in group if entry.name == baseline]
    if baseline is not None and not named:
        raise UsageError(
            f"The baseline {baseline} has other inputs or outputs than"
            f" {', '.join(entry.name for entry in group)}; they cannot be compared."
        )
    floats = [entry for entry in group if not entry.is_quantized]
    first = (named or floats or group)[0]
    return [first, *(entry for entry in group if entry is not first)]


def _measure(
    group: list[_Entry], workload: Workload, options: BenchOptions, on_step: OnStep | None
) -> list[Row]:
    judgements = _judgements(group, workload, options, on_step)
    rows = []
    for batch, length in product(options.batches, options.lengths):
        rows += _time(group, workload, options, (batch, length), judgements, on_step)
    return rows


def _time(
    group: list[_Entry],
    workload: Workload,
    options: BenchOptions,
    size: tuple[int, int],
    judgements: Mapping[str, Judgement],
    on_step: OnStep | None,
) -> list[Row]:
    """Time a group at one size; the baseline takes part twice, as its own control."""
    feeds = workload.timing_feeds(batch=size[0], length=size[1], seed=options.seed)
    for entry in group:
        check_feeds(feeds, graph_tensors(entry.graph.payload)[0])
    runs = [
        (entry, name, Contestant(_file_for(entry, name), name))
        for name in options.engines
        for entry in group
        if get_engine(name).stage == "onnx" or entry.source.stage == "torch"
    ]
    if not runs:
        raise UsageError(
            f"{', '.join(e.name for e in group)}: only .pt models run on {options.engines[0]}."
        )
    contestants = [contestant for _, _, contestant in runs]
    *timings, control = measure_latency(
        [*contestants, contestants[0]], feeds, options.plan, on_step=on_step
    )
    rows = []
    for index, ((entry, engine, contestant), timing) in enumerate(zip(runs, timings, strict=True)):
        against = control if index == 0 else timing
        speedup = ratio_of_medians(timings[0].blocks_ms, against.blocks_ms, seed=options.seed)
        size_bytes = contestant.path.stat().st_size
        judgement = judgements.get(entry.name)
        row = Row(entry.name, engine, *size, index == 0, size_bytes, timing, speedup, judgement)
        rows.append(_with_limit(row, entry, feeds, options.plan) if engine == "ort" else row)
    return rows


def _with_limit(row: Row, entry: _Entry, feeds: Feeds, plan: LatencyPlan) -> Row:
    """Add MACs, bytes and the machine's limit to a row timed on ONNX Runtime."""
    cost = total_cost(count_costs(entry.graph.payload, feeds))
    return replace(row, cost=cost, limit=limit_of(cost, load_peaks(), threads=plan.threads))


def _file_for(entry: _Entry, engine: str) -> Path:
    return entry.graph_path if get_engine(engine).stage == "onnx" else entry.path


def _judgements(
    group: list[_Entry], workload: Workload, options: BenchOptions, on_step: OnStep | None
) -> dict[str, Judgement]:
    """Measure quality on the very files that were timed on ONNX Runtime."""
    if not options.measures_quality:
        return {}
    judged = judge(
        [entry.graph for entry in group],
        workload,
        samples=options.samples,
        budget=options.budget,
        on_step=on_step,
    )
    return {entry.name: each for entry, each in zip(group, judged, strict=True)}
