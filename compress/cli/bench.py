"""`aigc-compress bench`: models against their FP32 baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aigc_compress.console import progress, say, show_json, show_table, to_json
from aigc_compress.errors import UsageError
from aigc_compress.storage import require_writable, write_bytes

from . import options as common

if TYPE_CHECKING:
    from aigc_compress.bench_result import BenchResult, Row

__all__ = ["bench"]


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="models; none: those of this folder, else the shipped references"),
    ] = None,
    engine: Annotated[str, typer.Option(help="ort, torch, trt, or several: ort,torch")] = "ort",
    baseline: Annotated[str | None, typer.Option(help="model to compare with")] = None,
    threads: common.Threads = 1,
    batch: Annotated[str, typer.Option(help="samples of a timed call, or several: 1,8,32")] = "1",
    length: Annotated[str, typer.Option(help="time steps of a timed call, or several")] = "1",
    gap_ms: Annotated[float, typer.Option(min=0, help="idle time before each call")] = 0.0,
    processes: common.Processes = 5,
    calibration: common.Calibration = None,
    evaluation: common.Evaluation = None,
    feed: common.Feed = None,
    shape: common.Shape = None,
    max_drop: common.MaxDrop = None,
    min_sqnr: common.MinSqnr = None,
    samples: common.Samples = None,
    quality: Annotated[bool, typer.Option(help="measure quality too")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="fail on a busy machine")] = False,
    seed: common.Seed = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the JSON document here too")
    ] = None,
    json: common.Json = False,
) -> None:
    """Measure latency and quality of models against a baseline.

    Blocks are interleaved in random order over fresh processes. Ratios come with a 95 % interval,
    verdicts where it leaves 1 out; the baseline is timed against itself too (A/A).

    Examples:
        aigc-compress bench gan.onnx gan.int8.onnx

        aigc-compress bench rnn.onnx rnn.int8.onnx --length 64

        aigc-compress bench --engine ort,torch gan.pt
    """
    from aigc_compress.bench_result import BenchOptions
    from aigc_compress.benching import bench_models as run

    options = BenchOptions(
        engines=tuple(name.strip() for name in engine.split(",")),
        baseline=baseline,
        batches=_sizes(batch, "--batch"),
        lengths=_sizes(length, "--length"),
        feeds=common.feed_options(calibration, evaluation, feed, shape),
        budget=common.budget(max_drop, min_sqnr),
        samples=samples,
        measures_quality=quality,
        is_strict=strict,
        seed=seed,
        plan=common.latency_plan(threads, processes, seed, gap_ms=gap_ms),
    )
    if output is not None:
        require_writable(output)
    with progress("bench") as on_step:
        result = run(models or [], options, on_step=on_step)
    _report(result, output, as_json=json)


def _report(result: BenchResult, output: Path | None, *, as_json: bool) -> None:
    if output is not None:
        write_bytes(output, (to_json(result.document()) + "\n").encode())
    if as_json:
        show_json(result.document())
    else:
        _show(result)


def _show(result: BenchResult) -> None:
    from aigc_compress.machine import cpu_name

    columns = [
        *(
            "model",
            "engine",
            "batch x length",
            "size",
            "ms",
            "p90 ms",
            "limit ms",
            "speed",
            "verdict",
        ),
        *("quality", "worse by (budget)"),
    ]
    plan = result.options.plan
    title = f"{cpu_name()}, {plan.threads} thread(s), {plan.processes} processes"
    show_table(title, *_without_trivial_columns(columns, [_cells(row) for row in result.rows]))
    for row in result.rows:
        if row.judgement is not None and row.judgement.quality.details:
            say(f"{row.model}: {dict(row.judgement.quality.details)}")
    if result.trust.complaint:
        say(f"Note: the machine was not quiet: {result.trust.complaint}. Repeat it alone.")
    for note in result.notes:
        say(f"Note: {note}")


def _cells(row: Row) -> list[str]:
    from aigc_compress.bench.statistics import percentile_interval

    from .tables import quality_cells, size_text, speed_text

    value, change = quality_cells(row.judgement)
    if row.is_baseline and row.judgement is not None and row.judgement.baseline is not None:
        change = "-"
    p90 = percentile_interval(row.timing.calls_ms, 90)
    return [
        row.model,
        row.engine,
        f"{row.batch} x {row.length}",
        size_text(row.size_bytes),
        f"{row.timing.median_ms:.3f}",
        "n too small" if p90.high is None else f"{p90.value:.3f}",
        _limit_text(row),
        speed_text(row.speedup),
        "baseline, A/A" if row.is_baseline else row.speedup.verdict,
        value,
        change,
    ]


def _without_trivial_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Leave out columns that say nothing here: nothing measured, or a single call of one sample."""
    kept = [i for i in range(len(columns)) if {row[i] for row in rows} - {"-", "1 x 1"}]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _limit_text(row: Row) -> str:
    """Return the least time that this machine allows, what sets it, and the share reached."""
    if row.limit is None:
        return "-"
    share = row.limit.efficiency(row.timing.median_ms)
    return f"{row.limit.milliseconds:.3f} {row.limit.bound_by} {share:.0%}"


def _sizes(text: str, option: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {text!r} must be whole numbers of at least 1, like 1,8,32.")
    return tuple(int(part) for part in parts)
