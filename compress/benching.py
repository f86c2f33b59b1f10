"""`bench`: models against their FP32 baseline, by latency and by quality on the same files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from aigc_compress.bench.counting import count_costs, total_cost
from aigc_compress.bench.latency import Contestant, LatencyPlan, measure_latency
from aigc_compress.bench.roofline import limit_of, load_peaks
from aigc_compress.bench.statistics import ratio_of_medians
from aigc_compress.bench.trust import Watch
from aigc_compress.models import REFERENCES

from .api import QuantizeOptions, judge, quantize, to_onnx
from .artifact import Artifact, graph_tensors, save_onnx, size_on_disk
from .bench_result import BenchOptions, BenchResult, Row
from .budget import Judgement
from .engines import check_feeds, get_engine
from .errors import AigcCompressError, UsageError
from .loading import load_artifact, resolve_source
from .task import Feeds, OnStep
from .workload import Workload, make_workload

__all__ = ["bench_models", "workspace_sources"]


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


@dataclass(frozen=True)
class _Run:
    """An entry on one engine."""

    entry: _Entry
    engine: str

    @property
    def path(self) -> Path:
        is_onnx = get_engine(self.engine).stage == "onnx"
        return self.entry.graph_path if is_onnx else self.entry.path

    @property
    def artifact(self) -> Artifact:
        is_onnx = get_engine(self.engine).stage == "onnx"
        return self.entry.graph if is_onnx else self.entry.source


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
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        entries, workloads = _open(_named_paths(sources, options, work), options, work)
        contests = [
            (workloads[key], _runs(group, options)) for key, group in _groups(entries).items()
        ]
        rows: list[Row] = []
        for workload, runs in contests:
            rows += _measure(runs, workload, options, on_step)
    trust = watch.stop()
    if trust.complaint and options.is_strict:
        raise AigcCompressError(f"The machine was not quiet: {trust.complaint}.")
    notes = [note for workload, _ in contests for note in workload.notes]
    notes += _skipped(entries, options)
    return BenchResult(tuple(rows), options, tuple(dict.fromkeys(notes)), trust)


def workspace_sources(folder: Path) -> list[Path]:
    """Return the models in a folder, by name: `.pt` and `.onnx` files."""
    found = (p for p in folder.iterdir() if p.suffix in (".pt", ".onnx") and p.is_file())
    return sorted(path.relative_to(folder) for path in found)


def _named_paths(
    sources: Sequence[str | Path], options: BenchOptions, work: Path
) -> dict[str, str | Path]:
    """Return what takes part by name: the sources, else this folder's models, else references."""
    names = list(sources) or workspace_sources(Path.cwd())
    paths: dict[str, str | Path] = {str(name): name for name in names}
    if not paths:
        paths = _reference_ladder(work)
    return paths if options.baseline is None else {options.baseline: options.baseline, **paths}


def _reference_ladder(work: Path) -> dict[str, str | Path]:
    """Return every shipped reference in FP32 and, quantized into `work`, in INT8."""
    paths: dict[str, str | Path] = {}
    quick = QuantizeOptions(samples=640, plan=LatencyPlan(processes=3, blocks=2))
    for name in REFERENCES:
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


def _runs(group: list[_Entry], options: BenchOptions) -> list[_Run]:
    """Return who runs on what in a group, the baseline first.

    The baseline is the named model, else the first one that is not quantized, on the first engine
    that takes it.

    Raises:
        UsageError: the named baseline has another face, or no model of the group fits an engine.
    """
    runs = [
        _Run(entry, engine)
        for engine in options.engines
        for entry in group
        if _takes(engine, entry)
    ]
    names = ", ".join(entry.name for entry in group)
    if not runs:
        raise UsageError(f"{names}: only .pt models run on {', '.join(options.engines)}.")
    if options.baseline is None:
        ranked = sorted(runs, key=lambda run: run.entry.is_quantized)
    else:
        ranked = [run for run in runs if run.entry.name == options.baseline]
    if not ranked:
        raise UsageError(
            f"The baseline {options.baseline} cannot be compared with {names}: it has other inputs"
            f" or outputs, or does not run on {', '.join(options.engines)}."
        )
    return [ranked[0], *(run for run in runs if run is not ranked[0])]


def _takes(engine: str, entry: _Entry) -> bool:
    return get_engine(engine).stage == "onnx" or entry.source.stage == "torch"


def _skipped(entries: Sequence[_Entry], options: BenchOptions) -> list[str]:
    """Name the pairs that were left out."""
    return [
        f"{entry.name} was left out on {engine}, which runs .pt models alone."
        for engine in options.engines
        for entry in entries
        if not _takes(engine, entry)
    ]


def _measure(
    runs: list[_Run], workload: Workload, options: BenchOptions, on_step: OnStep | None
) -> list[Row]:
    """Measure quality once, on the files and engines that are then timed at every size."""
    sizes = {
        (batch, length): workload.timing_feeds(batch=batch, length=length, seed=options.seed)
        for batch, length in product(options.batches, options.lengths)
    }
    for feeds in sizes.values():
        for run in runs:
            check_feeds(feeds, graph_tensors(run.entry.graph.payload)[0])
    judgements = _judgements(runs, workload, options, on_step)
    rows = []
    for (batch, length), feeds in sizes.items():
        timed = _time(runs, feeds, options, on_step)
        rows += [
            replace(row, batch=batch, length=length, judgement=judgement)
            for row, judgement in zip(timed, judgements, strict=True)
        ]
    return rows


def _time(
    runs: list[_Run], feeds: Feeds, options: BenchOptions, on_step: OnStep | None
) -> list[Row]:
    """Time all runs; the baseline takes part twice, as its own control."""
    contestants = [Contestant(run.path, run.engine) for run in runs]
    *timings, control = measure_latency(
        [*contestants, contestants[0]], feeds, options.plan, on_step=on_step
    )
    rows = []
    for run, timing in zip(runs, timings, strict=True):
        is_baseline = run is runs[0]
        against = control if is_baseline else timing
        speedup = ratio_of_medians(timings[0].blocks_ms, against.blocks_ms, seed=options.seed)
        size = size_on_disk(run.path)
        row = Row(run.entry.name, run.engine, 1, 1, is_baseline, size, timing, speedup, None)
        rows.append(_with_limit(row, run.entry, feeds, options.plan))
    return rows


def _with_limit(row: Row, entry: _Entry, feeds: Feeds, plan: LatencyPlan) -> Row:
    """Add MACs, bytes and the machine's limit to a row that was timed on ONNX Runtime."""
    if row.engine != "ort":
        return row
    cost = total_cost(count_costs(entry.graph.payload, feeds))
    return replace(row, cost=cost, limit=limit_of(cost, load_peaks(), threads=plan.threads))


def _judgements(
    runs: list[_Run], workload: Workload, options: BenchOptions, on_step: OnStep | None
) -> list[Judgement] | list[None]:
    """Measure quality of the very files on the very engines that are timed."""
    if not options.measures_quality:
        return [None] * len(runs)
    threads = os.cpu_count() or 1
    return judge(
        [get_engine(run.engine).load(run.artifact, threads=threads) for run in runs],
        workload,
        samples=options.samples,
        budget=options.budget,
        seed=options.seed,
        on_step=on_step,
    )
