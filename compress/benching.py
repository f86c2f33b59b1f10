"""`bench`: models against their FP32 baseline, by latency and by quality on the same files."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import cast

from aigc_compress.bench.counting import count_costs, total_cost
from aigc_compress.bench.latency import Contestant, LatencyPlan, run_contest
from aigc_compress.bench.profile import profile_layers
from aigc_compress.bench.roofline import Peaks, keep_peaks, limit_of, load_peaks
from aigc_compress.bench.trust import Watch, read_surroundings
from aigc_compress.models import EDGES, REFERENCES

from .api import judge, to_onnx
from .artifact import Artifact, graph_tensors, save_onnx
from .bench_result import BenchOptions, BenchResult, FileFacts, Row
from .budget import Judgement
from .engines import ENGINES, check_feeds, get_engine
from .engines.cuda import describe_gpu
from .errors import AigcCompressError, UsageError
from .loading import load_artifact, resolve_source
from .machine import describe_machine
from .packed import is_packed
from .passes.operators import BORDERS, all_nodes, is_integer
from .quantizing import QuantizeOptions, quantize
from .task import Feeds, OnStep
from .workload import TaskWorkload, Workload, make_workload

__all__ = ["ALL_ENGINES", "bench_models", "workspace_sources"]

ALL_ENGINES = "all"


@dataclass(frozen=True)
class _Entry:
    """A model that takes part: under which name, from which artifact, in which ONNX form."""

    name: str
    source: Artifact
    graph: Artifact
    path: Path
    graph_path: Path
    workload: Workload

    @property
    def is_quantized(self) -> bool:
        """Whether integers stand in it, whoever wrote them."""
        return self.source.stage == "onnx" and any(
            node.op_type in BORDERS or is_integer(node.op_type)
            for node in all_nodes(self.source.payload.graph)
        )


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
    options, missing = _with_present_engines(options or BenchOptions())
    for name in options.engines:
        get_engine(name)
    watch, surroundings = Watch(), read_surroundings()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        entries = _open(_named_paths(sources, options, work), options, work)
        contests = [_runs(group, options) for group in _groups(entries).values()]
        rows: list[Row] = []
        digests: list[str] = []
        failed: list[str] = []
        for all_runs in contests:
            runs = _that_work(all_runs, options, failed) if options.leaves_out else all_runs
            sizes = _sizes(runs, options)
            digests += [_digest(feeds) for each in sizes.values() for feeds in each]
            rows += _measure(runs, sizes, options, on_step)
    peaks, rows = _under_peaks(rows, options.plan.threads)
    trust = watch.stop()
    if trust.complaint and options.is_strict:
        raise AigcCompressError(f"The machine was not quiet: {trust.complaint}.")
    notes = [note for entry in entries for note in entry.workload.notes]
    notes += [*_skipped(entries, options), *missing, *failed, *_remarks(rows, options)]
    return BenchResult(
        tuple(rows),
        options,
        tuple(dict.fromkeys(notes)),
        trust,
        machine={
            **describe_machine(),
            **surroundings,
            **describe_gpu(),
            "load_average_after": read_surroundings()["load_average"],
        },
        peaks=peaks,
        feeds_sha256=tuple(dict.fromkeys(digests)),
    )


def _with_present_engines(options: BenchOptions) -> tuple[BenchOptions, list[str]]:
    """Return options with every engine that is here in place of `all`, and why others are not."""
    if options.engines != (ALL_ENGINES,):
        return options, []
    found = {name: engine.availability() for name, engine in ENGINES.items()}
    present = tuple(name for name, each in found.items() if each.is_available)
    missing = [
        f"The engine {name} was left out: {each.detail}."
        + (f" To install: {each.install}" if each.install else "")
        for name, each in found.items()
        if not each.is_available
    ]
    return replace(options, engines=present, leaves_out=True), missing


def workspace_sources(folder: Path) -> list[Path]:
    """Return the models in a folder, by name: `.pt` and `.onnx` files."""
    files = (path for path in folder.iterdir() if path.is_file())
    found = (path for path in files if path.suffix in (".pt", ".onnx") or is_packed(path))
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
    """Return every reference in FP32, quantized into `work`, and as its edge recipe left it."""
    paths: dict[str, str | Path] = {}
    quick = QuantizeOptions(samples=640, plan=LatencyPlan(processes=3, blocks=2))
    for name in REFERENCES:
        quantized = work / f"{name}.int8.onnx"
        quantize(name, quantized, quick)
        paths |= {name: name, f"{name}.int8": quantized}
        paths |= {edge: edge for edge in EDGES if edge == f"{name}-edge"}
    return paths


def _open(paths: Mapping[str, str | Path], options: BenchOptions, work: Path) -> list[_Entry]:
    """Load every source, and export what an ONNX engine needs exported."""
    entries: list[_Entry] = []
    workloads: dict[str, Workload] = {}
    for index, (name, source) in enumerate(paths.items()):
        artifact = load_artifact(source)
        workload = make_workload(artifact, options.feeds)
        graph = to_onnx(artifact, workload, seed=options.seed)
        path = resolve_source(source)
        graph_path = path
        if artifact.stage == "torch" or is_packed(path):
            graph_path = work / f"{index}.onnx"
            save_onnx(graph, graph_path)
        entry = _Entry(name, artifact, graph, path, graph_path, workload)
        if not isinstance(workload, TaskWorkload):  # the same feeds for all models of a face
            entry = replace(entry, workload=workloads.setdefault(_key(entry), workload))
        entries.append(entry)
    return entries


def _key(entry: _Entry) -> str:
    """Return what models that are compared have in common.

    A task gives every model feeds that fit it, so a pruned state may be narrower.
    """
    inputs, outputs = graph_tensors(entry.graph.payload)
    names = [t.name for t in outputs]
    if isinstance(entry.workload, TaskWorkload):
        return f"{entry.graph.task} {[(t.name, t.dtype) for t in inputs]} {names}"
    face = [(t.name, t.dtype, [a for a in t.shape if isinstance(a, int)]) for t in inputs]
    return f"{face} {names}"


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


def _that_work(runs: list[_Run], options: BenchOptions, failed: list[str]) -> list[_Run]:
    """Try every run on its timed feeds; add those that fail to `failed` and return the others.

    Raises:
        AigcCompressError: the baseline fails.
    """
    working = []
    for run in runs:
        feeds = run.entry.workload.timing_feeds(
            batch=options.batches[0], length=options.lengths[0], seed=options.seed
        )
        try:
            get_engine(run.engine).load(run.artifact, threads=options.plan.threads).run(feeds)
        except AigcCompressError as error:
            if run is runs[0]:
                raise
            failed.append(f"{run.entry.name} was left out on {run.engine}: {error}")
        else:
            working.append(run)
    return working


def _takes(engine: str, entry: _Entry) -> bool:
    return get_engine(engine).stage == "onnx" or entry.source.stage == "torch"


def _skipped(entries: Sequence[_Entry], options: BenchOptions) -> list[str]:
    """Name the pairs that were left out, and the engines whose layers were."""
    of_torch = [name for name in options.engines if get_engine(name).stage == "torch"]
    left_out = [
        f"{entry.name} was left out on {', '.join(of_torch)}: only .pt models run there."
        for entry in entries
        if of_torch and entry.source.stage != "torch"
    ]
    unprofiled = [
        f"Layers were not profiled on {engine}: only ort tells the time of each."
        for engine in options.engines
        if options.profiles_layers and engine != "ort"
    ]
    return left_out + unprofiled


def _remarks(rows: Sequence[Row], options: BenchOptions) -> list[str]:
    """Return what engines had to say of a model, and by which clock a GPU was timed."""
    said = [f"{row.model} on {row.engine}: {told}" for row in rows for told in row.timing.remarks]
    if options.plan.clock == "device":
        said.append("Times are the device's own, from tensors there to tensors there.")
    return said


def _sizes(runs: list[_Run], options: BenchOptions) -> dict[tuple[int, int], list[Feeds]]:
    """Return every run's feeds of a timed call by batch and length, checked against its model."""
    sizes = {
        (batch, length): [
            run.entry.workload.timing_feeds(batch=batch, length=length, seed=options.seed)
            for run in runs
        ]
        for batch, length in product(options.batches, options.lengths)
    }
    for each in sizes.values():
        for run, feeds in zip(runs, each, strict=True):
            check_feeds(feeds, graph_tensors(run.entry.graph.payload)[0])
    return sizes


def _digest(feeds: Feeds) -> str:
    """Return the SHA-256 of feeds: names, dtypes, shapes and values, in order."""
    digest = hashlib.sha256()
    for name, value in feeds.items():
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _measure(
    runs: list[_Run],
    sizes: Mapping[tuple[int, int], Sequence[Feeds]],
    options: BenchOptions,
    on_step: OnStep | None,
) -> list[Row]:
    """Measure quality once, on the files and engines that are then timed at every size."""
    judgements = _judgements(runs, options, on_step)
    files = [FileFacts.of(run.path) for run in runs]
    rows = []
    for (batch, length), feeds in sizes.items():
        timed = _time(runs, files, feeds, options, on_step)
        rows += [
            replace(row, batch=batch, length=length, judgement=judgement)
            for row, judgement in zip(timed, judgements, strict=True)
        ]
    return rows


def _time(
    runs: list[_Run],
    files: list[FileFacts],
    feeds: Sequence[Feeds],
    options: BenchOptions,
    on_step: OnStep | None,
) -> list[Row]:
    """Time all runs; the baseline takes part twice, as its own control."""
    contestants = [
        Contestant(run.path, run.engine, feeds=own) for run, own in zip(runs, feeds, strict=True)
    ]
    control = replace(contestants[0], decides=False)
    contest = run_contest([*contestants, control], feeds[0], options.plan, on_step=on_step)
    rows = []
    for index, run in enumerate(runs):
        is_baseline = index == 0
        row = Row(
            run.entry.name,
            run.engine,
            batch=1,
            length=1,
            is_baseline=is_baseline,
            file=files[index],
            timing=contest.timings[index],
            speedup=contest.speedup(-1 if is_baseline else index),
            control=contest.timings[-1] if is_baseline else None,
            ended=contest.reason,
            operators=run.artifact.counted.get("operators"),
        )
        rows.append(_with_costs(row, run.entry, feeds[index], options))
    return rows


def _with_costs(row: Row, entry: _Entry, feeds: Feeds, options: BenchOptions) -> Row:
    """Add MACs, bytes, the machine's limit and the layers to a row timed on ONNX Runtime."""
    if row.engine != "ort":
        return row
    threads, model = options.plan.threads, entry.graph.payload
    cost = total_cost(count_costs(model, feeds))
    row = replace(row, cost=cost, limit=limit_of(cost, load_peaks(), threads=threads))
    if not options.profiles_layers:
        return row
    layers = profile_layers(model, feeds, threads=threads, peaks=load_peaks())
    return replace(row, layers=tuple(layers))


def _under_peaks(rows: list[Row], threads: int) -> tuple[Peaks | None, list[Row]]:
    """Return the peaks, raised and kept where a row or layer beat its limit, and rows under them.

    A time within a noisy machine's error of the limit is not above it: medians are taken, while
    the peaks are the best of many calls.
    """
    counted = [row for row in rows if row.cost]
    if not counted:
        return None, rows
    known = peaks = load_peaks()
    for row in counted:
        cost = cast(Mapping[str, int], row.cost)
        peaks = peaks.admitting(cost, row.timing.median_ms, threads=threads)
        size = _weight_bytes(row)
        for layer in row.layers or ():
            if layer.efficiency is not None:
                peaks = peaks.admitting(
                    layer.cost, layer.ms, threads=threads, working_set_bytes=size
                )
    if peaks is known:
        return peaks, rows
    keep_peaks(peaks)
    return peaks, [_under(row, peaks, threads) if row.cost else row for row in rows]


def _under(row: Row, peaks: Peaks, threads: int) -> Row:
    size = _weight_bytes(row)
    layers = [
        layer.under(peaks, threads=threads, working_set_bytes=size) for layer in row.layers or ()
    ]
    limit = limit_of(cast(Mapping[str, int], row.cost), peaks, threads=threads)
    return replace(row, limit=limit, layers=tuple(layers) if row.layers else None)


def _weight_bytes(row: Row) -> int:
    return sum(layer.weight_bytes for layer in row.layers or ())


def _judgements(
    runs: list[_Run], options: BenchOptions, on_step: OnStep | None
) -> list[Judgement] | list[None]:
    """Measure quality of the very files on the very engines that are timed."""
    if not options.measures_quality:
        return [None] * len(runs)
    threads = os.cpu_count() or 1
    return judge(
        [get_engine(run.engine).load(run.artifact, threads=threads) for run in runs],
        [run.entry.workload for run in runs],
        samples=options.samples,
        budget=options.budget,
        seed=options.seed,
        on_step=on_step,
        with_exhibit=True,
    )
