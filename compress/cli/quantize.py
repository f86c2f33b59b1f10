"""`aigc-compress quantize`: the fastest form within the budget, measured, with the evidence."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aigc_compress.console import progress, say, show, show_json, show_table
from aigc_compress.schemes import SCHEMES

from . import options as common

if TYPE_CHECKING:
    from aigc_compress.quantizing import QuantizeResult

__all__ = ["quantize"]


class ModeName(StrEnum):
    """Modes of quantization."""

    auto = "auto"
    static = "static"
    dynamic = "dynamic"


IsaName = StrEnum("IsaName", {name: name for name in SCHEMES if name != "tensorrt"})


def quantize(
    model: Annotated[str, typer.Argument(help="gan, cnn, rnn, rnn-gru, a .pt or an .onnx file")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=".onnx to write [MODEL.int8.onnx]")
    ] = None,
    mode: Annotated[
        ModeName, typer.Option(help="auto: static for Conv and Gemm, dynamic for LSTM, and both")
    ] = ModeName.auto,
    calibration: common.Calibration = None,
    evaluation: common.Evaluation = None,
    feed: common.Feed = None,
    shape: common.Shape = None,
    max_drop: common.MaxDrop = None,
    min_sqnr: common.MinSqnr = None,
    min_speedup: Annotated[
        float, typer.Option(min=1.0, help="what the lower end of the speed-up must exceed")
    ] = 1.0,
    max_size: Annotated[
        float | None, typer.Option(min=0.0, help="largest file, in MB (10^6 bytes)")
    ] = None,
    samples: common.Samples = None,
    max_minutes: Annotated[
        float,
        typer.Option(min=0.0, help="time for the search; the final contest comes on top"),
    ] = 20.0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="measure again what an earlier run has measured")
    ] = False,
    isa: Annotated[
        IsaName | None, typer.Option(help="processor that the file is for [this one]")
    ] = None,
    threads: common.Threads = 1,
    processes: common.Processes = 8,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Write the fastest form of a model that stays within the quality budget.

    Several ways to quantize compete. What is shipped is shown to be faster than FP32 in paired
    runs, and within the budget on test data; where nothing is, the output is FP32 and every
    candidate says why. The output is a plain ONNX file that stock ONNX Runtime loads, with the
    evidence in its metadata.

    The search leaves the best so far when it is interrupted, and the same command goes on where it
    was: what was made and measured stands in ~/.cache/aigc-compress ($AIGC_COMPRESS_CACHE).

    Examples:
        aigc-compress quantize gan.pt -o gan.int8.onnx

        aigc-compress quantize vad.onnx --calibration feeds.npz --json

        aigc-compress quantize detector.onnx --evaluation feeds.npz --max-minutes 10
    """
    from aigc_compress.quantizing import QuantizeOptions
    from aigc_compress.quantizing import quantize as run

    options = QuantizeOptions(
        mode.value,
        common.feed_options(calibration, evaluation, feed, shape),
        common.budget(max_drop, min_sqnr),
        samples,
        min_speedup,
        None if max_size is None else int(max_size * 1e6),
        seed,
        common.latency_plan(threads, processes, seed),
        max_minutes,
        fresh,
        isa.value if isa else None,
    )
    target = output or Path(f"{Path(model).stem}.int8.onnx")
    with progress(f"quantize {model}") as on_step:
        result = run(model, target, options, on_step=on_step)
    if json:
        show_json(result.document())
    else:
        _show(result)


def _show(result: QuantizeResult) -> None:
    from .tables import detail_lines, quality_cells, size_text, speed_text

    evidence = result.evidence()
    before, after = evidence["latency_ms"]["before"], evidence["latency_ms"]["after"]
    quality, change = quality_cells(result.judgement)
    baseline = result.judgement.baseline
    smaller = f"{result.sizes[0] / result.sizes[1]:.2f}x smaller"
    speed = f"{speed_text(result.speedup)} {result.speedup.verdict}"
    rows = [
        ["size", size_text(result.sizes[0]), size_text(result.sizes[1]), smaller],
        ["latency", f"{before:.3f} ms", f"{after:.3f} ms", speed],
        ["quality", f"{baseline.value:.3f}" if baseline else "-", quality, change],
    ]
    shipped = result.gated.winner.name
    show_table(str(result.output), ["", "FP32", shipped, "verdict"], rows)
    for line in detail_lines(result.judgement.quality.details):
        show(line)
    _show_candidates(result)
    _show_operators(result)
    for note in result.notes:
        say(f"Note: {note}")
    if result.gated.is_fallback:
        say("Note: FP32 was written: no candidate is faster within the budget (reasons above).")
    show(str(result.output))


def _show_candidates(result: QuantizeResult) -> None:
    from .tables import size_text

    rows = []
    for each in result.gated.findings:
        speed = each.speedup or each.quick
        ratio = f"{speed.ratio:.2f}x [{speed.low:.2f}, {speed.high:.2f}]" if speed else "-"
        size = "-" if each.size_bytes is None else size_text(each.size_bytes)
        rows.append([each.name, size, ratio, each.reason or "shipped"])
    show_table("candidates", ["candidate", "size", "speed", "why not"], rows)


def _show_operators(result: QuantizeResult) -> None:
    operators = result.numbers.get("operators")
    if operators is None:
        return
    rows = [[op, str(n), "int8", ""] for op, n in operators["int8"].items()]
    for op, count in operators["float"].items():
        why = [f"{n} x {reason}" for reason, n in operators["reasons"].get(op, {}).items()]
        rows.append([op, str(count), "float", "; ".join(why)])
    rows += [[op, str(n), "overhead", "border"] for op, n in operators["overhead"].items()]
    show_table("operators as ONNX Runtime runs them", ["operator", "count", "runs as", "why"], rows)
