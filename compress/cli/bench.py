"""`aigc-compress bench`: models against their FP32 baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aigc_compress.console import progress, show_json, show_table, to_json
from aigc_compress.errors import UsageError
from aigc_compress.storage import require_writable, write_bytes

from . import options as common

if TYPE_CHECKING:
    from aigc_compress.bench_result import BenchOptions, BenchResult
    from aigc_compress.workload import FeedOptions

__all__ = ["bench"]


FEEDS = {"calibration", "evaluation", "feed", "shape"}
BUILDS = {"models", "engine", "build_only", "output", "json", *FEEDS}
REPLAYS = {"models", "replay", "output", "json"}
Clock = Literal["wall", "device"]


def bench(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(help="models; none: those of this folder, else the shipped references"),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="one that `doctor` lists, several: ort,openvino, or all")
    ] = "ort",
    baseline: Annotated[str | None, typer.Option(help="model to compare with")] = None,
    threads: common.Threads = 1,
    batch: Annotated[str, typer.Option(help="samples of a timed call, or several: 1,8,32")] = "1",
    length: Annotated[str, typer.Option(help="time steps of a timed call, or several")] = "1",
    gap_ms: Annotated[float, typer.Option(min=0, help="idle time before each call")] = 0.0,
    callers: Annotated[
        int, typer.Option(min=1, max=256, help="threads that call at once: measures throughput")
    ] = 1,
    processes: common.Processes = 8,
    max_seconds: Annotated[
        float | None,
        typer.Option(min=1, help="timing ends after this", show_default="when verdicts are clear"),
    ] = None,
    budget_seconds: Annotated[
        float | None, typer.Option(min=1, help="the quick meter: short blocks, about so long")
    ] = None,
    clock: Annotated[
        Clock,
        typer.Option(
            help="wall: from array to array; device: the GPU's own, tensors there already"
        ),
    ] = "wall",
    cores: Annotated[
        str | None,
        typer.Option(help="CPU cores to bind workers to, like 0,1", show_default="not bound"),
    ] = None,
    calibration: common.Calibration = None,
    evaluation: common.Evaluation = None,
    feed: common.Feed = None,
    shape: common.Shape = None,
    max_drop: common.MaxDrop = None,
    min_sqnr: common.MinSqnr = None,
    samples: common.Samples = None,
    quality: Annotated[bool, typer.Option(help="measure quality too")] = True,
    profile: Annotated[
        bool, typer.Option("--profile", help="show where the time of every layer goes (ort)")
    ] = False,
    build_only: Annotated[
        bool,
        typer.Option("--build-only", help="trt: build engines, show time and size; needs no GPU"),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="fail on a busy machine")] = False,
    seed: common.Seed = 0,
    replay: Annotated[
        Path | None,
        typer.Option(help="a document of -o: derive every number again, measure nothing"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the JSON document here too")
    ] = None,
    json: common.Json = False,
) -> None:
    """Measure latency and quality of models against a baseline.

    Blocks are interleaved in random order over fresh processes, until every verdict is clear.
    Ratios come with an interval of at least 95 %, verdicts where it leaves 1 out; the baseline is
    timed against itself too (A/A).

    Examples:
        aigc-compress bench gan.onnx gan.int8.onnx --profile

        aigc-compress bench rnn.onnx rnn.int8.onnx --length 1,64

        aigc-compress bench --engine all gan.pt -o gan.json

        aigc-compress bench gan.pt --engine torch-cuda,torch-cuda-graph,ort-cuda --clock device

        aigc-compress bench --replay gan.json

        aigc-compress bench gan.onnx --engine trt --build-only
    """
    from aigc_compress.bench_result import BenchOptions

    if output is not None:
        require_writable(output)
    if build_only:
        if engine != "trt":
            raise UsageError(f"Only trt builds engines beforehand, not {engine}.")
        common.refuse_others(context, BUILDS, "--build-only")
        feeds = common.feed_options(calibration, evaluation, feed, shape)
        _report_builds(models or [], feeds, output, as_json=json)
        return
    if replay is not None:
        common.refuse_others(context, REPLAYS, "--replay")
        _report(_replayed(models, replay), output, as_json=json)
        return
    options = BenchOptions(
        engines=tuple(name.strip() for name in engine.split(",")),
        baseline=baseline,
        batches=common.whole_numbers(batch, "--batch"),
        lengths=common.whole_numbers(length, "--length"),
        feeds=common.feed_options(calibration, evaluation, feed, shape),
        budget=common.budget(max_drop, min_sqnr),
        samples=samples,
        measures_quality=quality,
        profiles_layers=profile,
        is_strict=strict,
        seed=seed,
        plan=common.latency_plan(
            threads,
            processes,
            seed,
            budget_seconds=budget_seconds,
            gap_ms=gap_ms,
            callers=callers,
            max_seconds=max_seconds,
            clock=clock,
            cores=common.whole_numbers(cores, "--cores", least=0) if cores else (),
        ),
    )
    _report(_measured(models or [], options), output, as_json=json)


def _report_builds(
    models: list[str], feeds: FeedOptions, output: Path | None, *, as_json: bool
) -> None:
    from aigc_compress.benching import workspace_sources
    from aigc_compress.building import EngineOptions, try_builds
    from aigc_compress.models import REFERENCES

    sources = models or [*map(str, workspace_sources(Path.cwd()))] or [*REFERENCES]
    with progress("bench") as on_step:
        rows = try_builds(sources, options=EngineOptions(feeds=feeds), on_step=on_step)
    document = {"schema": "aigc-compress/builds/1", "engine": "trt", "builds": rows}
    if output is not None:
        write_bytes(output, (to_json(document) + "\n").encode())
    if as_json:
        show_json(document)
        return
    shown = [
        [row["model"], row["precision"], "", "", "", f"refused: {row['refused']}"]
        if row["refused"]
        else [
            *(row["model"], row["precision"], f"{row['build_seconds']:.1f}"),
            *(f"{row['size_bytes'] / 1e6:.2f} MB", f"{row['sqnr_db']:.1f}"),
            " ".join(row["builder"].values()),
        ]
        for row in rows
    ]
    names = ["model", "precision", "s to build", "engine", "dB from the source", "built by"]
    show_table(
        "TensorRT engines, built and not run, INT8 and FP8 with min-max ranges", names, shown
    )


def _measured(models: list[str], options: BenchOptions) -> BenchResult:
    from aigc_compress.benching import bench_models

    with progress("bench") as on_step:
        return bench_models(models, options, on_step=on_step)


def _replayed(models: list[str] | None, path: Path) -> BenchResult:
    from aigc_compress.replay import replay

    if models:
        raise UsageError("--replay shows an earlier measurement: name no models beside it.")
    return replay(path)


def _report(result: BenchResult, output: Path | None, *, as_json: bool) -> None:
    if output is not None:
        write_bytes(output, (to_json(result.document()) + "\n").encode())
    if as_json:
        show_json(result.document())
        return
    from .bench_tables import show_result

    show_result(result)
