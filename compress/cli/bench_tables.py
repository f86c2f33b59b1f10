"""What `bench` shows on a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aigc_compress.console import say, show, show_table

from .tables import detail_lines, quality_cells, size_text, speed_text

if TYPE_CHECKING:
    from aigc_compress.bench.profile import Layer
    from aigc_compress.bench_result import BenchResult, Row

__all__ = ["show_result"]

COSTLY_LAYERS = 8


def show_result(result: BenchResult) -> None:
    """Print the table, then what stands behind it: endings, qualities, layers, notes."""
    from aigc_compress.machine import cpu_name

    plan = result.options.plan
    columns = [
        *("model", "engine", "batch x length", "size", "ms", "p90 ms"),
        *("samples/s", "limit ms", "speed", "verdict"),
        *("quality", "worse by (budget)"),
    ]
    cpu = result.machine.get("cpu") or cpu_name()
    title = f"{cpu}, {plan.threads} thread(s)"
    if plan.callers > 1:
        title += f", {plan.callers} callers at once: ms is wall time per call"
    rows = [_cells(row, is_throughput=plan.callers > 1) for row in result.rows]
    show_table(title, *_without_trivial_columns(columns, rows))
    for row in result.rows:
        if row.is_baseline:
            show(_ending(row, plan.processes))
    for row in result.rows:
        if row.judgement is not None and row.judgement.quality.details:
            show(f"{row.model} ({row.engine})")
            for line in detail_lines(row.judgement.quality.details):
                show(f"  {line}")
    for row in result.rows:
        if row.layers:
            _show_layers(row, row.layers)
    _show_notes(result)


def _show_notes(result: BenchResult) -> None:
    for row in result.rows:
        if row.timing.unsteady_processes:
            say(
                f"Note: {row.model} on {row.engine} had not settled after its warm-up in"
                f" {row.timing.unsteady_processes} of {len(row.timing.processes)} processes."
            )
    _note_cores(result)
    if result.trust.complaint:
        say(f"Note: the machine was not quiet: {result.trust.complaint}. Repeat it alone.")
    for note in result.notes:
        say(f"Note: {note}")


def _note_cores(result: BenchResult) -> None:
    wanted = result.options.plan.cores
    used = {each.cores for row in result.rows for each in row.timing.processes}
    if wanted and used != {tuple(sorted(set(wanted)))}:
        say("Note: this system does not bind processes to CPU cores: --cores had no effect.")


def _ending(row: Row, most: int) -> str:
    """Tell how a group's measurement ended, and what chance alone made of it."""
    count = len(row.timing.processes)
    return (
        f"{row.model}{_size_text(row)}: {row.ended} after {count} of at most {most} processes,"
        f" {row.speedup.confidence:.1%} intervals; against itself (A/A)"
        f" {speed_text(row.speedup)}, {row.speedup.verdict}"
    )


def _size_text(row: Row) -> str:
    return "" if (row.batch, row.length) == (1, 1) else f" {row.batch} x {row.length}"


def _cells(row: Row, *, is_throughput: bool) -> list[str]:
    from aigc_compress.bench.statistics import percentile_interval

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
        f"{row.samples_per_second:.0f}" if is_throughput else "-",
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


def _show_layers(row: Row, layers: Sequence[Layer]) -> None:
    """Print the costliest layers, the share of time by kind of work, and what stays float."""
    from aigc_compress.bench.profile import costliest_float, overhead

    ranked = sorted(layers, key=lambda layer: -layer.share)[:COSTLY_LAYERS]
    title = f"{row.model}: {len(ranked)} costliest of {len(layers)} layers (engine's profile)"
    columns = ["layer", "operator", "kind", "ms", "share", "MMACs", "limit ms", "efficiency"]
    show_table(title, columns, [_layer_cells(layer) for layer in ranked])
    shares = overhead(layers)
    show("  " + ", ".join(f"{role} {share:.0%}" for role, share in shares.items() if share))
    if shares["integer"]:
        floats = [f"{each.op} {each.share:.0%}" for each in costliest_float(layers)]
        show(f"  costliest in float: {', '.join(floats) or 'none'}")


def _layer_cells(layer: Layer) -> list[str]:
    return [
        layer.name,
        layer.op,
        layer.role,
        f"{layer.ms:.4f}",
        f"{layer.share:.0%}",
        f"{layer.macs / 1e6:.2f}",
        f"{layer.limit_ms:.4f}",
        "-" if layer.efficiency is None else f"{layer.efficiency:.0%}",
    ]
