"""`python -m aigc_compress.bench.peers`: other toolkits and ours on the same models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from aigc_compress.cli import options as common
from aigc_compress.cli.tables import quality_cells, size_text, speed_text
from aigc_compress.console import progress, say, show, show_json, show_table, to_json
from aigc_compress.errors import AigcCompressError
from aigc_compress.machine import cpu_name
from aigc_compress.storage import read_json, require_writable, write_bytes

from .contest import SCHEMA, PeerOptions, PeerRow, PeersResult, compare_peers
from .markdown import markdown_table

__all__ = ["app", "main"]

COMMAND = "python -m aigc_compress.bench.peers -o"

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def peers(
    models: Annotated[
        list[str],
        typer.Argument(help="gan, cnn, rnn, .pt or .onnx files; with --markdown, .json of -o"),
    ],
    threads: common.Threads = 1,
    batch: Annotated[int, typer.Option(min=1, help="samples of a timed call")] = 1,
    length: Annotated[int, typer.Option(min=1, help="time steps of a timed call")] = 1,
    processes: common.Processes = 5,
    calibration: common.Calibration = None,
    evaluation: common.Evaluation = None,
    feed: common.Feed = None,
    shape: common.Shape = None,
    samples: common.Samples = None,
    seed: common.Seed = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the JSON document here too")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="measure nothing: print documents as one table")
    ] = False,
    json: common.Json = False,
) -> None:
    """Compare ONNX Runtime's tools, OpenVINO with NNCF, Neural Compressor and ours on models.

    Speeds are against ONNX Runtime in FP32; all calibrate on the same feeds. A peer that fails is
    a row with its error.

    Examples:
        python -m aigc_compress.bench.peers cnn --json

        python -m aigc_compress.bench.peers rnn rnn-gru --length 64
    """
    if markdown:
        show(markdown_table([read_json(Path(name), SCHEMA, COMMAND) for name in models]))
        return
    feeds = common.feed_options(calibration, evaluation, feed, shape)
    plan = common.latency_plan(threads, processes, seed)
    if output is not None:
        require_writable(output)
    with progress("peers") as on_step:
        options = PeerOptions(batch, length, feeds, samples, seed, plan)
        result = compare_peers(models, options, on_step=on_step)
    if output is not None:
        write_bytes(output, (to_json(result.document()) + "\n").encode())
    if json:
        show_json(result.document())
    else:
        _show(result)


def main() -> None:
    """Run the command line and leave with the documented exit code."""
    try:
        app()
    except AigcCompressError as error:
        say(f"Error: {error}")
        sys.exit(error.exit_code)


def _show(result: PeersResult) -> None:
    columns = ["peer", "engine", "size", "ms", "speed", "verdict", "quality", "worse by (budget)"]
    plan = result.options.plan
    machine = f"{cpu_name()}, {plan.threads} thread(s), {plan.processes} processes"
    for model in dict.fromkeys(row.model for row in result.rows):
        rows = [_cells(row) for row in result.rows if row.model == model]
        show_table(f"{model}: {machine}", columns, rows)
    for row in result.rows:
        if row.error is not None:
            say(f"{row.model}, {row.peer.name}: {row.error}")
    if result.trust.complaint:
        say(f"Note: the machine was not quiet: {result.trust.complaint}. Repeat it alone.")
    for note in result.notes:
        say(f"Note: {note}")


def _cells(row: PeerRow) -> list[str]:
    size = "-" if row.file is None else size_text(row.file.size_bytes)
    named = [row.peer.name, row.peer.engine, size]
    if row.row is None:
        return [*named, "-", "-", "failed", "-", "-"]
    told = row.row
    verdict = "baseline, A/A" if told.is_baseline else told.speedup.verdict
    timed = [f"{told.timing.median_ms:.3f}", speed_text(told.speedup), verdict]
    return [*named, *timed, *quality_cells(row.judgement)]


if __name__ == "__main__":
    main()
