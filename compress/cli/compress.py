"""`aigc-compress compress`: one command from a model to a small and fast file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aigc_compress.console import say, show, show_json, staged_progress

from . import options as common
from .run import say_news, say_report, show_run

__all__ = ["compress"]


def compress(
    model: Annotated[str, typer.Argument(help="a reference, .pt, .onnx or package.module:factory")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=".onnx to write", show_default="MODEL.edge.onnx"),
    ] = None,
    max_drop: common.MaxDrop = None,
    target_ms: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="milliseconds of a call that are enough",
            show_default="as fast as it goes",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="your own task, package.module:attribute")
    ] = None,
    training: Annotated[
        bool, typer.Option(help="whether recipes with training may be tried")
    ] = True,
    folder: Annotated[
        Path | None,
        typer.Option(help="folder of the runs, where they go on", show_default="runs/MODEL"),
    ] = None,
    samples: common.Samples = None,
    device: common.Device = "auto",
    data: common.Images = None,
    threads: common.Threads = 1,
    processes: common.Processes = 8,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Make a model small and fast by the shipped recipe that fits its task and budget.

    Without a target the recipe that trains a small student comes first (up to an hour), and INT8
    alone where that fails. With --target-ms the cheap one comes first. The fastest result within
    the budget is written; where a target or the budget is missed, the output says so.

    Examples:
        aigc-compress compress cnn --max-drop 0.5 -o cnn.edge.onnx

        aigc-compress compress rnn.pt --max-drop 1% --target-ms 0.4

        aigc-compress compress detector.onnx --no-training
    """
    from aigc_compress.api import require_output
    from aigc_compress.choosing import compress as choose_and_run
    from aigc_compress.models.training.coach import TaskCoach
    from aigc_compress.running import RunOptions
    from aigc_compress.storage import write_bytes

    stem = Path(model.replace(":", ".")).stem
    target = output or Path(f"{stem}.edge.onnx")
    require_output(target, model)
    options = RunOptions(
        folder or Path("runs") / stem,
        common.budget(max_drop, None),
        samples,
        seed,
        common.latency_plan(threads, processes, seed),
    )
    coach = TaskCoach(device=device, images=data, on_progress=say_news) if training else None
    with staged_progress(f"compress {model}") as (on_step, on_stage):
        choice = choose_and_run(
            model,
            options,
            coach,
            task=task,
            target_ms=target_ms,
            on_choice=lambda why: say(f"Recipes: {why}."),
            on_step=on_step,
            on_stage=on_stage,
            on_report=say_report,
        )
    write_bytes(target, choice.result.output.read_bytes())
    if json:
        show_json({**choice.document(), "output": str(target)})
        return
    for each in choice.tried:
        show_run(each)
    if not choice.is_met:
        say(
            f"Note: no recipe met everything asked for; {choice.result.recipe.name} came nearest."
            " Allow more with --max-drop or --target-ms, or train longer with `run --set`."
        )
    show(str(target))
