"""All peers on one model after another: convert, open, judge, and time the ones that are left."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aigc_compress.api import to_onnx
from aigc_compress.artifact import graph_tensors, save_onnx
from aigc_compress.bench.latency import Contest, Contestant, LatencyPlan, run_contest
from aigc_compress.bench.trust import Trust, Watch, read_surroundings
from aigc_compress.bench_result import FileFacts, Row, settings_document
from aigc_compress.budget import Judgement, judge_quality
from aigc_compress.engines import check_feeds, get_engine
from aigc_compress.errors import AigcCompressError, PassError, StoppedError
from aigc_compress.loading import load_artifact, resolve_source
from aigc_compress.machine import describe_machine
from aigc_compress.quantizing import QuantizeOptions
from aigc_compress.task import Feeds, OnStep, Quality, Runner
from aigc_compress.workload import FeedOptions, Workload, make_workload

from .conversion import Job, convert_apart, one_line
from .table import PEERS, Peer

__all__ = ["SCHEMA", "PeerOptions", "PeerRow", "PeersResult", "compare_peers"]

SCHEMA = "aigc-compress/peers/1"
PROBE = LatencyPlan(processes=1, blocks=1, block_ms=1.0, warmup_ms=1.0)
LIBRARIES = ("onnxruntime", "openvino", "nncf", "neural-compressor", "torchao")


@dataclass(frozen=True)
class PeerOptions:
    """Everything that a comparison may be told.

    Attributes:
        batch: samples of a timed call.
        length: time steps of a timed call, for models with a time axis.
        feeds: feeds for models without a task.
        samples: samples of the quality measurement; None takes the task's default.
        seed: of calibration feeds, order and statistics.
        plan: how latency is measured.
    """

    batch: int = 1
    length: int = 1
    feeds: FeedOptions = field(default_factory=FeedOptions)
    samples: int | None = None
    seed: int = 0
    plan: LatencyPlan = field(default_factory=LatencyPlan)


@dataclass(frozen=True)
class PeerRow:
    """What became of one peer on one model: a measured row, or the reason why there is none."""

    model: str
    peer: Peer
    path: Path | None = None
    file: FileFacts | None = None
    judgement: Judgement | None = None
    row: Row | None = None
    error: str | None = None

    def document(self) -> dict[str, Any]:
        """Return a row of `bench` with the peer and its error, one of the two None."""
        named = {"peer": self.peer.name, "model": self.model, "engine": self.peer.engine}
        if self.row is not None:
            return {**named, **self.row.document(), "error": self.error}
        empty = dict.fromkeys(("latency_ms", "percentiles_ms", "speedup", "verdict", "quality"))
        size_bytes = self.file.size_bytes if self.file else None
        return {**named, "size_bytes": size_bytes, **empty, "error": self.error}


@dataclass(frozen=True)
class PeersResult:
    """All rows, model after model, and the machine they were measured on."""

    rows: tuple[PeerRow, ...]
    options: PeerOptions
    notes: tuple[str, ...]
    trust: Trust

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document."""
        options = self.options
        told = {
            "batch": options.batch,
            "length": options.length,
            "samples": options.samples,
            "seed": options.seed,
        }
        return {
            "schema": SCHEMA,
            "machine": describe_machine() | read_surroundings(),
            "trust": self.trust.document(),
            "settings": settings_document(options.plan) | told | {"libraries": _versions()},
            "rows": [row.document() for row in self.rows],
            "notes": list(self.notes),
        }


def compare_peers(
    sources: Sequence[str | Path],
    options: PeerOptions | None = None,
    *,
    peers: Sequence[Peer] = PEERS,
    on_step: OnStep | None = None,
) -> PeersResult:
    """Measure every peer on every model; the first peer is the baseline of the others.

    A peer that fails at any stage is a row with its error and stops nobody else.

    Args:
        sources: references, `.pt` and `.onnx` files.
        options: see PeerOptions.
        peers: who takes part.
        on_step: called with (done, total) during conversions, then during the measurements.

    Raises:
        UsageError: a source or an option is wrong.
        PassError: the baseline itself does not run.
    """
    options = options or PeerOptions()
    watch = Watch()
    rows: list[PeerRow] = []
    notes: list[str] = []
    for source in sources:
        with tempfile.TemporaryDirectory() as folder:
            contest = _Contest.open(source, options, Path(folder))
            rows += contest.hold(peers, on_step)
            notes += [*contest.workload.calibration_notes, *contest.workload.notes]
    return PeersResult(tuple(rows), options, tuple(dict.fromkeys(notes)), watch.stop())


@dataclass(frozen=True)
class _Contest:
    """One model with what all peers share: its FP32 graph, its feeds, a folder for their files."""

    name: str
    source: Path
    workload: Workload
    options: PeerOptions
    folder: Path
    timing_feeds: Feeds
    calibration: Sequence[Feeds]

    @classmethod
    def open(cls, source: str | Path, options: PeerOptions, folder: Path) -> _Contest:
        artifact = load_artifact(source)
        workload = make_workload(artifact, options.feeds)
        graph = to_onnx(artifact, workload, seed=options.seed)
        feeds = workload.timing_feeds(batch=options.batch, length=options.length, seed=options.seed)
        check_feeds(feeds, graph_tensors(graph.payload)[0])
        save_onnx(graph, folder / "fp32.onnx")
        path = resolve_source(source).resolve()
        calibration = workload.calibration(seed=options.seed)
        return cls(Path(source).name, path, workload, options, folder, feeds, calibration)

    def hold(self, peers: Sequence[Peer], on_step: OnStep | None) -> list[PeerRow]:
        """Return the rows of all peers."""
        rows = []
        for index, peer in enumerate(peers):
            row = PeerRow(self.name, peer)
            for stage in (self._converted, self._opened):
                row = _attempt(stage, row)
            rows.append(self._without_folder(row))
            if on_step:
                on_step(index + 1, len(peers))
        _require(rows[0])
        return self._timed(self._judged(rows), on_step)

    def _without_folder(self, row: PeerRow) -> PeerRow:
        """Name files in errors by their names alone: the folder is gone when they are read."""
        return replace(row, error=row.error and row.error.replace(f"{self.folder}/", ""))

    def _converted(self, row: PeerRow) -> PeerRow:
        """Add the peer's file."""
        if row.peer.missing:
            raise PassError(row.peer.missing)
        graph = self.folder / "fp32.onnx"
        path = graph
        if row.peer.conversion is not None:
            path = self.folder / f"{row.peer.name}.onnx"
            job = Job(self.source, graph, path, self.calibration, self._quantize_options())
            convert_apart(row.peer.conversion, job)
        return replace(row, path=path)

    def _opened(self, row: PeerRow) -> PeerRow:
        """Load and run it once in a process of its own, which may crash; add what its file is."""
        run_contest([self._contestant(row)], self.timing_feeds, PROBE)
        assert row.path is not None
        return replace(row, file=FileFacts.of(row.path))

    def _judged(self, rows: list[PeerRow]) -> list[PeerRow]:
        """Add the quality of the very files on the very engines that are timed."""
        reference = self._runner(rows[0])
        baseline = self._quality(reference, reference)
        known = baseline if self.workload.has_baseline_quality else None

        def stage(row: PeerRow) -> PeerRow:
            is_first = row is rows[0]
            quality = baseline if is_first else self._quality(self._runner(row), reference)
            return replace(row, judgement=judge_quality(quality, known, None))

        return [_attempt(stage, row) for row in rows]

    def _timed(self, rows: list[PeerRow], on_step: OnStep | None) -> list[PeerRow]:
        """Time all that are left together; the baseline takes part twice, as its own control."""
        left = [row for row in rows if row.error is None]
        contestants = [self._contestant(row) for row in left]
        control = replace(contestants[0], decides=False)
        try:
            contest = run_contest(
                [*contestants, control], self.timing_feeds, self.options.plan, on_step=on_step
            )
        except StoppedError:
            raise
        except AigcCompressError as error:
            return [replace(row, error=row.error or one_line(error)) for row in rows]
        timed = {row.peer.name: self._row(row, i, contest) for i, row in enumerate(left)}
        return [replace(row, row=timed.get(row.peer.name)) for row in rows]

    def _row(self, row: PeerRow, index: int, contest: Contest) -> Row:
        assert row.file is not None
        is_baseline = index == 0
        return Row(
            row.model,
            row.peer.engine,
            batch=self.options.batch,
            length=self.options.length,
            is_baseline=is_baseline,
            file=row.file,
            timing=contest.timings[index],
            speedup=contest.speedup(-1 if is_baseline else index),
            judgement=row.judgement,
            control=contest.timings[-1] if is_baseline else None,
            ended=contest.reason,
        )

    def _contestant(self, row: PeerRow) -> Contestant:
        assert row.path is not None
        return Contestant(row.path, row.peer.engine)

    def _runner(self, row: PeerRow) -> Runner:
        assert row.path is not None
        engine = get_engine(row.peer.engine)
        return engine.load(load_artifact(row.path), threads=os.cpu_count() or 1)

    def _quality(self, runner: Runner, reference: Runner) -> Quality:
        quality = self.workload.measure(
            runner, reference, samples=self.options.samples, seed=self.options.seed, on_step=None
        )
        if quality.value != quality.value:  # NaN
            raise PassError(f"Its {quality.metric} is NaN: its outputs are not finite numbers.")
        return quality

    def _quantize_options(self) -> QuantizeOptions:
        options, feeds = self.options, self.options.feeds
        absolute = replace(
            feeds,
            calibration=feeds.calibration and feeds.calibration.resolve(),
            evaluation=feeds.evaluation and feeds.evaluation.resolve(),
        )
        return QuantizeOptions(
            feeds=absolute,
            samples=options.samples,
            seed=options.seed,
            plan=options.plan,
            is_fresh=True,  # a comparison measures, whatever was measured before
        )


def _attempt(stage: Callable[[PeerRow], PeerRow], row: PeerRow) -> PeerRow:
    """Return what a stage makes of a row; the error where it fails, or where one did before."""
    if row.error is not None:
        return row
    try:
        return stage(row)
    except StoppedError:
        raise
    except Exception as error:  # a peer may fail in any way; the row tells it
        return replace(row, error=one_line(error))


def _require(baseline: PeerRow) -> None:
    if baseline.error is not None:
        raise PassError(f"{baseline.model} does not run in FP32: {baseline.error}")


def _versions() -> dict[str, str | None]:
    """Return the versions of the libraries that peers rest on, None where one is missing."""
    installed = {d.metadata["Name"].replace("_", "-") for d in importlib.metadata.distributions()}
    return {n: importlib.metadata.version(n) if n in installed else None for n in LIBRARIES}
