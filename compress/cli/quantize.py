"""`aigc-compress quantize`: the fastest form within the budget, measured, with the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aigc_compress.console import progress, say, show, show_json, show_table

from . import options as common

if TYPE_CHECKING:
    from aigc_compress.quantizing import QuantizeResult
    from aigc_compress.why_not import NodeReport

__all__ = ["quantize", "show_nodes"]

NODES_SHOWN = 12
NAME_SHOWN = 36  # characters, the last ones


class ModeName(StrEnum):
    """Modes of quantization."""

    auto = "auto"
    static = "static"
    dynamic = "dynamic"


class IsaName(StrEnum):
    """Processors with a scheme of their own that ONNX Runtime runs."""

    avx2 = "avx2"
    avx512 = "avx512"
    vnni = "vnni"
    amx = "amx"
    arm = "arm"
    arm_dotprod = "arm-dotprod"
    arm_i8mm = "arm-i8mm"


def quantize(
    model: Annotated[str, typer.Argument(help="gan, cnn, rnn, rnn-gru, a .pt or an .onnx file")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=".onnx to write", show_default="MODEL.int8.onnx"),
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
        IsaName | None, typer.Option(help="processor that the file is for", show_default="this one")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="what the answer may run on: ort, openvino, ... (several: a,b), or auto: all that"
            " are here"
        ),
    ] = "ort",
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

        aigc-compress quantize cnn --engine auto

        aigc-compress quantize gan --engine openvino -o gan.ov.onnx
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
        engines=tuple(name.strip() for name in engine.split(",")),
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
    if result.gated.winner.engine != "ort":
        rows.append(["engine", "ort", result.gated.winner.engine, ""])
    shipped = result.gated.winner.name
    show_table(str(result.output), ["", "FP32", shipped, "verdict"], rows)
    for line in detail_lines(result.judgement.quality.details):
        show(line)
    _show_candidates(result)
    show_nodes(result.nodes)
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


def show_nodes(nodes: Sequence[NodeReport]) -> None:
    """Print the nodes that take longest, with the reason of each, and a line about the rest."""
    if not nodes:
        return
    rows = [_node_cells(each) for each in nodes[:NODES_SHOWN]]
    title = f"nodes as ONNX Runtime runs them, under its profiler: {_shares(nodes)}"
    show_table(title, ["node", "operator", "runs as", "ms", "share", "why not, what helps"], rows)
    if rest := nodes[NODES_SHOWN:]:
        total_ms = sum(each.ms for each in rest)
        share = sum(each.share for each in rest)
        show(f"{len(rest)} more: {total_ms:.3f} ms, {share:.1%} (--json has them all)")


def _node_cells(node: NodeReport) -> list[str]:
    name = node.name if len(node.name) <= NAME_SHOWN else f"…{node.name[1 - NAME_SHOWN :]}"
    why = f"{node.reason} -> {node.remedy}" if node.remedy else node.reason
    return [name, node.operator, node.kind, f"{node.ms:.3f}", f"{node.share:.1%}", why]


def _shares(nodes: Sequence[NodeReport]) -> str:
    """Return the share of the time by kind, in words."""
    kinds = ("integer", "float", "overhead")
    shares = {kind: sum(each.share for each in nodes if each.kind == kind) for kind in kinds}
    return ", ".join(f"{share:.0%} {kind}" for kind, share in shares.items())
