"""`aigc-compress bench`: models against their FP32 baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aigc_compress.budget import Budget
from aigc_compress.console import progress, say, show_json, show_table

from . import options as common

if TYPE_CHECKING:
    from aigc_compress.benching import BenchResult, Row

__all__ = ["bench"]


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="models; none: those of this folder, else the shipped references"),
    ] = None,
    engine: Annotated[str, typer.Option(help="ort, torch, trt, or several: ort,torch")] = "ort",
    baseline: Annotated[str | None, typer.Option(help="model to compare with")] = None,
    threads: common.Threads = 1,
    batch: Annotated[int, typer.Option(min=1, help="samples of a timed call")] = 1,
    length: Annotated[int, typer.Option(min=1, help="time steps of a timed call")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="fresh processes per model")] = 3,
    calibration: common.Calibration = None,
    evaluation: common.Evaluation = None,
    feed: common.Feed = None,
    shape: common.Shape = None,
    max_drop: common.MaxDrop = None,
    samples: common.Samples = None,
    quality: Annotated[bool, typer.Option(help="measure quality too")] = True,
    seed: common.Seed = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the JSON document here too")
    ] = None,
    json: common.Json = False,
) -> None:
    """Measure latency and quality of models against a baseline.

    Blocks of calls are interleaved in random order over fresh processes; the ratio to the baseline
    comes with a 95 % bootstrap interval, and a verdict only where the interval leaves 1 out.

    Examples:
        aigc-compress bench gan.onnx gan.int8.onnx

        aigc-compress bench rnn.onnx rnn.int8.onnx --length 64

        aigc-compress bench --engine ort,torch gan.pt
    """
    from aigc_compress.benching import BenchOptions
    from aigc_compress.benching import bench_models as run

    options = BenchOptions(
        engines=tuple(name.strip() for name in engine.split(",")),
        baseline=baseline,
        batch=batch,
        length=length,
        feeds=common.feed_options(calibration, evaluation, feed, shape),
        budget=Budget.parse(max_drop) if max_drop else None,
        samples=samples,
        measures_quality=quality,
        seed=seed,
        plan=common.latency_plan(threads, processes, seed),
    )
    with progress("bench") as on_step:
        result = run(models or [], options, on_step=on_step)
    _save(result, output)
    if json:
        show_json(result.document())
    else:
        _show(result)


def _save(result: BenchResult, output: Path | None) -> None:
    if output is not None:
        import json

        from aigc_compress.storage import write_bytes

        write_bytes(output, (json.dumps(result.document(), indent=2) + "\n").encode())


def _show(result: BenchResult) -> None:
    from aigc_compress.machine import cpu_name

    columns = ["model", "engine", "size", "ms", "speed", "verdict", "quality", "worse by (budget)"]
    options = result.options
    title = (
        f"{cpu_name()}, {options.plan.threads} thread(s), batch {options.batch},"
        f" length {options.length}"
    )
    show_table(title, columns, [_cells(row) for row in result.rows])
    for row in result.rows:
        if row.judgement is not None and row.judgement.quality.details:
            say(f"{row.model}: {dict(row.judgement.quality.details)}")
    for note in result.notes:
        say(f"Note: {note}")


def _cells(row: Row) -> list[str]:
    from .tables import quality_cells, size_text, speed_text

    value, change = quality_cells(row.judgement)
    if row.speedup is None and row.judgement is not None and row.judgement.baseline is not None:
        change = "-"
    return [
        row.model,
        row.engine,
        size_text(row.size_bytes),
        f"{row.timing.median_ms:.3f}",
        speed_text(row.speedup),
        row.speedup.verdict if row.speedup else "baseline",
        value,
        change,
    ]
