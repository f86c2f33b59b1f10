"""`aigc-compress analyze`: which layer costs how much quality and time in INT8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aigc_compress.console import progress, say, show, show_json, show_table

from . import options as common

if TYPE_CHECKING:
    from aigc_compress.analysis import Analysis, LayerResult

__all__ = ["analyze"]


def analyze(
    model: Annotated[str, typer.Argument(help="gan, cnn, rnn, rnn-gru, a .pt or an .onnx file")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=".html page with a heat map", show_default="none"),
    ] = None,
    calibration: common.Calibration = None,
    evaluation: common.Evaluation = None,
    feed: common.Feed = None,
    shape: common.Shape = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="show the most harmful layers alone", show_default="all"),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="time for measuring; what is left out is named", show_default="no limit"
        ),
    ] = None,
    threads: common.Threads = 1,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Show which layers INT8 harms, what each saves, and which differ from CPU to CPU.

    Every layer is quantized alone: whole, its weights alone, its activations alone. The noise in
    the outputs is told in dB (SQNR against FP32, higher is better). Then everything but the worst
    few layers is. Milliseconds are ONNX Runtime's profiler's. The last column tells what 8-bit
    weights do on x86 without VNNI, where sums saturate. An INT8 file is checked for that alone.

    Examples:
        aigc-compress analyze gan

        aigc-compress analyze detector.onnx --evaluation feeds.npz -o detector.html

        aigc-compress analyze detector.onnx --top 10 --max-minutes 5

        aigc-compress analyze detector.int8.onnx --json
    """
    from aigc_compress.analysis import AnalyzeOptions, render_analysis
    from aigc_compress.analysis import analyze as run
    from aigc_compress.storage import write_bytes

    _require_page(output)
    feeds = common.feed_options(calibration, evaluation, feed, shape)
    with progress(f"analyze {model}") as on_step:
        found = run(model, AnalyzeOptions(feeds, seed, threads, max_minutes), on_step=on_step)
    if output is not None:
        write_bytes(output, render_analysis(found).encode())
    if json:
        show_json(found.document())
    else:
        _show(found, top)
        if output is not None:
            show(str(output))


def _require_page(output: Path | None) -> None:
    """Raise before any work if the page could not be written."""
    from aigc_compress.errors import UsageError
    from aigc_compress.storage import require_writable

    if output is None:
        return
    if output.suffix not in (".html", ".htm"):
        raise UsageError(f"The output {output} must end in .html; --json prints the numbers.")
    require_writable(output)


def _show(found: Analysis, top: int | None) -> None:
    from aigc_compress.analysis import summarize

    if found.layers:
        _show_layers(found, top)
        _show_schemes(found)
    elif found.saturation:
        _show_saturation(found, top)
    for sentence in summarize(found):
        show(sentence)
    for note in found.notes:
        say(f"Note: {note}")
    if found.skipped:
        say(f"Note: not measured for want of time: {', '.join(found.skipped)}")


def _show_layers(found: Analysis, top: int | None) -> None:
    columns = ["layer", "operator", "dB alone", "dB weights", "dB activations"]
    columns += ["dB without", "ms float", "ms int8", "saturates"]
    title = f"{found.source}: every layer alone on INT8, SQNR against FP32"
    layers = found.layers if top is None else found.worst[:top]
    show_table(title, columns, [_row(each, found) for each in layers])


def _row(layer: LayerResult, found: Analysis) -> list[str]:
    from aigc_compress.analysis import saturation_text

    without = next((each.db for each in found.held if each.names == (layer.site.name,)), None)
    harm = [layer.both_db, layer.weights_db, layer.activations_db, without]
    return [
        layer.site.name,
        layer.site.operator,
        *_numbers(harm, 1),
        *_numbers([layer.float_ms, layer.integer_ms], 3),
        saturation_text(layer.saturation),
    ]


def _numbers(values: Sequence[float | None], decimals: int) -> list[str]:
    return ["-" if value is None else f"{value:.{decimals}f}" for value in values]


def _show_schemes(found: Analysis) -> None:
    rows = [
        [
            f"{each.scheme.told}{' (this machine)' if each.is_here else ''}",
            f"{each.scheme.activations} x {each.scheme.weights}, {each.scheme.weight_bits} bits",
            *_numbers([each.db], 1),
        ]
        for each in found.schemes
    ]
    show_table("schemes, rounding alone", ["machine", "activations x weights", "dB"], rows)


def _show_saturation(found: Analysis, top: int | None) -> None:
    from aigc_compress.analysis import saturation_text

    rows = [
        [
            f"{each.name} ({each.part})" if each.part else each.name,
            each.operator,
            f"{each.can_saturate:.2%}",
            f"{each.worst:.2f}",
            saturation_text(each),
            each.note,
        ]
        for each in found.saturation[:top]
    ]
    columns = ["layer", "operator", "pairs that can", "worst / int16", "saturates", "note"]
    show_table(f"{found.source}: x86 without VNNI", columns, rows)
