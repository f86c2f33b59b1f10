"""`aigc-compress prune`: a torch model with fewer channels and hidden units."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aigc_compress.console import progress, say, show_json, show_table
from aigc_compress.errors import UsageError, describe_faults

from . import options as common

__all__ = ["prune"]


def prune(
    model: Annotated[str, typer.Argument(help="gan, cnn, rnn, rnn-gru or a .pt file")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=".pt to write", show_default="MODEL.pruned.pt"),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="share of all channels and hidden units to take out")
    ] = None,
    target_macs: Annotated[
        float | None, typer.Option(help="multiplications left; up to 1: share of them")
    ] = None,
    target_size: Annotated[
        float | None, typer.Option(help="bytes of float32 weights left; up to 1: share of them")
    ] = None,
    target_ms: Annotated[
        float | None,
        typer.Option(help="milliseconds of a call in FP32 on this machine, timed while pruning"),
    ] = None,
    importance: Annotated[
        str, typer.Option(help="output, taylor, magnitude, bn-scale or activation")
    ] = "output",
    scope: Annotated[
        str, typer.Option(help="global: all layers compete; layer: each is pruned alike")
    ] = "global",
    multiple: Annotated[
        str,
        typer.Option(help="widths left are multiples of it; measured: those that run fast here"),
    ] = "8",
    least: Annotated[int, typer.Option(min=1, help="units that every layer keeps")] = 8,
    keep: Annotated[
        list[str] | None, typer.Option(help="a parameter whose units all stay; may be repeated")
    ] = None,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Take the channels and hidden units that matter least out of a model (structured pruning).

    The result is a plain, smaller model. Train it on with `train --start-from`, with the dense
    model as its `--teacher`.

    Examples:
        aigc-compress prune gan.pt --target-macs 0.3 -o gan.pruned.pt

        aigc-compress prune cnn --target-ms 0.8

        aigc-compress prune rnn --ratio 0.5 --importance magnitude

        aigc-compress prune cnn --target-ms 0.8 --multiple measured
    """
    from pydantic import ValidationError

    from aigc_compress.api import prune as run
    from aigc_compress.models.training.coach import TaskCoach
    from aigc_compress.passes import PruneConfig

    target = output or Path(f"{Path(model).stem}.pruned.pt")
    given: dict[str, Any] = {
        "ratio": ratio,
        "target_macs": target_macs,
        "target_size": target_size,
        "target_ms": target_ms,
        "importance": importance,
        "scope": scope,
        "multiple": multiple,
        "least": least,
        "keep": tuple(keep or ()),
    }
    try:
        config = PruneConfig(**given)
    except ValidationError as error:
        raise UsageError(describe_faults(error)) from error
    coach = TaskCoach(device="cpu")
    with progress(f"prune {model}") as on_step:
        pruned = run(model, target, config, coach=coach, seed=seed, on_step=on_step)
    numbers = dict(pruned.history[-1].numbers)
    if json:
        show_json({"schema": "aigc-compress/prune/1", "output": str(target), **numbers})
        return
    widths = [[name, *map(str, pair)] for name, pair in numbers["widths"].items()]
    show_table("units", ["layer", "before", "after"], widths)
    totals = [
        [name, f"{before:,}", f"{after:,}", f"{before / after:.2f}x"]
        for name, (before, after) in (
            ("multiplications", numbers["macs"]),
            ("parameters", numbers["parameters"]),
        )
    ]
    if "milliseconds" in numbers:
        before, after = numbers["milliseconds"]
        totals.append(["ms in FP32", f"{before:.3f}", f"{after:.3f}", f"{before / after:.2f}x"])
    show_table(str(target), ["", "before", "after", "fewer"], totals)
    for table in numbers.get("width_tables", ()):
        rows = [
            [str(width), f"{ms:.3f}", "yes" if width in table["fast"] else ""]
            for width, ms in table["ms"]
        ]
        title = f"{table['kind']}, timed as {table['layer']}"
        show_table(title, ["width", "ms", "worth stopping at"], rows)
    for name in numbers.get("unmeasured", ()):
        say(f"{name} has no measured widths: multiples of 8 are left.")
    for name, reason in numbers["kept"].items():
        say(f"{name} stays whole: {reason}.")
