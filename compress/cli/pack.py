"""`aigc-compress pack`: a graph for storage and download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aigc_compress.console import progress, say, show, show_json, show_table

from . import options as common
from .tables import quality_cells, size_text

__all__ = ["pack"]


def pack(
    model: Annotated[str, typer.Argument(help="a shipped model, .pt or .onnx")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=".onnx.xz to write", show_default="MODEL.onnx.xz"),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(
            help="values that the weights of a tensor may share: a number of 2 to 256, several in"
            " the order to try them (16,32,64), or auto",
            show_default="weights as they are",
        ),
    ] = None,
    calibration: common.Calibration = None,
    evaluation: common.Evaluation = None,
    feed: common.Feed = None,
    shape: common.Shape = None,
    max_drop: common.MaxDrop = None,
    min_sqnr: common.MinSqnr = None,
    samples: common.Samples = None,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Write a graph entropy-coded: small to store and to download, decoded when it is loaded.

    As it is, every bit of it comes back. With --values the weights of each tensor share a few
    values, as in Deep Compression, if the quality stays within the budget. It runs as fast as
    before: every verb and `aigc_compress.runtime.load` read `.onnx.xz`, and so does `xz -d`.

    Examples:
        aigc-compress pack gan.int8.onnx

        aigc-compress pack rnn.int8.onnx --values auto --max-drop 0.5% -o rnn.onnx.xz
    """
    from aigc_compress.errors import UsageError
    from aigc_compress.packed import SUFFIX
    from aigc_compress.packing import LADDER
    from aigc_compress.packing import pack as run

    counts: tuple[int, ...] = ()
    if values is not None:
        auto = values == "auto"
        counts = LADDER if auto else common.whole_numbers(values, "--values", least=2)
    if any(each > 256 for each in counts):
        raise UsageError(f"--values {values}: a tensor shares at most 256 values.")
    if not counts and (max_drop or min_sqnr):
        raise UsageError("--max-drop and --min-sqnr have no effect without --values.")
    target = output or Path(Path(model).name.removesuffix(".pt").removesuffix(".onnx") + SUFFIX)
    with progress(f"pack {model}") as on_step:
        result = run(
            model,
            target,
            values=counts,
            feeds=common.feed_options(calibration, evaluation, feed, shape),
            budget=common.budget(max_drop, min_sqnr),
            samples=samples,
            seed=seed,
            on_step=on_step,
        )
    if json:
        show_json(result.document())
        return
    plain = result.plain
    sizes = {
        "plain": plain,
        "gzip": result.gzipped,
        "packed, every bit kept": result.lossless,
    }
    if result.values is not None:
        sizes[f"packed, {result.values} values per tensor"] = result.size_bytes
    table = [[told, size_text(size), f"{plain / size:.2f}x"] for told, size in sizes.items()]
    show_table(str(target), ["", "size", "smaller"], table)
    if result.refused:
        say(f"Outside the budget: {', '.join(map(str, result.refused))} values.")
    if result.judgement is not None:
        say("Quality: {}, {}".format(*quality_cells(result.judgement)))
    show(str(target))
