"""`bench`: models against their FP32 baseline, by latency and by quality on the same files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aigc_compress.bench.latency import Contestant, LatencyPlan, Timing, measure_latency
from aigc_compress.bench.statistics import RatioInterval, ratio_of_medians

from .api import QuantizeOptions, judge, quantize, to_onnx
from .artifact import Artifact, graph_tensors, save_onnx
from .budget import Budget, Judgement
from .engines import check_feeds, get_engine
from .errors import UsageError
from .loading import REFERENCE_NAMES, load_artifact, resolve_source
from .machine import describe_machine
from .task import OnStep
from .workload import FeedOptions, Workload, make_workload

__all__ = ["BenchOptions", "BenchResult", "Row", "bench_models", "workspace_sources"]


@dataclass(frozen=True)
class BenchOptions:
    """Everything that `bench` may be told.

    Attributes:
        engines: engines to run on; the first one runs the baseline.
        baseline: the model to compare with; None takes each group's first unquantized model.
        batch: size of the first dynamic axis in a timed call.
        length: time steps in a timed call, for a model with a time axis.
        feeds: feeds for models without a task.
        budget: allowed drop; None takes the metric's default.
        samples: samples of the quality measurement; None takes the task's default.
        measures_quality: whether quality is measured at all.
        seed: of feeds, order and statistics.
        plan: how latency is measured.
    """

    engines: tuple[str, ...] = ("ort",)
    baseline: str | None = None
    batch: int = 1
    length: int = 1
    feeds: FeedOptions = field(default_factory=FeedOptions)
    budget: Budget | None = None
    samples: int | None = None
    measures_quality: bool = True
    seed: int = 0
    plan: LatencyPlan = field(default_factory=LatencyPlan)


@dataclass(frozen=True)
class Row:
    """One model on one engine; `speedup` is None for the baseline itself."""

    model: str
    engine: str
    size_bytes: int
    timing: Timing
    speedup: RatioInterval | None
    judgement: Judgement | None

    def document(self) -> dict[str, Any]:
        """Return the row as JSON, raw block medians included."""
        speedup = self.speedup
        interval = (
            {"ratio": speedup.ratio, "low": speedup.low, "high": speedup.high} if speedup else None
        )
        return {
            "model": self.model,
            "engine": self.engine,
            "is_baseline": speedup is None,
            "size_bytes": self.size_bytes,
            "latency_ms": self.timing.median_ms,
            "load_ms": self.timing.load_ms,
            "first_ms": self.timing.first_ms,
            "calls": self.timing.calls,
            "blocks_ms": self.timing.blocks_ms.tolist(),
            "speedup": interval,
            "verdict": speedup.verdict if speedup else "baseline",
            "quality": self.judgement.document() if self.judgement else None,
        }


@dataclass(frozen=True)
class BenchResult:
    """All rows, group after group, and the machine they were measured on."""

    rows: tuple[Row, ...]
    options: BenchOptions
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document."""
        plan = self.options.plan
        return {
            "schema": "aigc-compress/bench/1",
            "machine": describe_machine(),
            "settings": {
                "threads": plan.threads,
                "batch": self.options.batch,
                "length": self.options.length,
                "processes": plan.processes,
                "blocks": plan.blocks,
                "block_ms": plan.block_ms,
                "seed": self.options.seed,
            },
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
    return BenchResult(tuple(rows), options, tuple(notes))


def workspace_sources(folder: Path) -> list[Path]:
    """Return the models in a folder, by name: `.pt` and `.onnx` files."""
    found = (p for p in folder.iterdir() if p.suffix in (".pt", ".onnx") and p.is_file())
    return sorted(path.relative_to(folder) for path in found)


def _reference_ladder(work: Path) -> dict[str, str | Path]:
    """Return every shipped reference in FP32 and, quantized into `work`, in INT8."""
    paths: dict[str, str | Path] = {}
    quick = QuantizeOptions(samples=640, plan=LatencyPlan(processes=1, blocks=2))
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
    feeds = workload.timing_feeds(batch=options.batch, length=options.length, seed=options.seed)
    for entry in group:
        check_feeds(feeds, graph_tensors(entry.graph.payload)[0])
    contestants = [
        (entry, name, Contestant(_file_for(entry, name), name))
        for name in options.engines
        for entry in group
        if get_engine(name).stage == "onnx" or entry.source.stage == "torch"
    ]
    if not contestants:
        raise UsageError(
            f"{', '.join(e.name for e in group)}: only .pt models run on {options.engines[0]}."
        )
    timings = measure_latency([c for _, _, c in contestants], feeds, options.plan, on_step=on_step)
    judgements = _judgements(group, workload, options, on_step)
    rows = []
    for (entry, engine, contestant), timing in zip(contestants, timings, strict=True):
        is_baseline = timing is timings[0]
        speedup = ratio_of_medians(timings[0].blocks_ms, timing.blocks_ms, seed=options.seed)
        rows.append(
            Row(
                entry.name,
                engine,
                contestant.path.stat().st_size,
                timing,
                None if is_baseline else speedup,
                judgements.get(entry.name),
            )
        )
    return rows


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
