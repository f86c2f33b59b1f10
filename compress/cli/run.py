"""`aigc-compress run`: a recipe, from the model to the file that is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aigc_compress.console import say, show, show_json, show_table, staged_progress

from . import options as common
from .settings import pairs
from .tables import quality_cells, size_text, speed_text

if TYPE_CHECKING:
    from aigc_compress.models.training.loop import Progress
    from aigc_compress.running import RunResult, StepReport

__all__ = ["run", "say_news", "say_report", "show_run"]


def run(
    recipe: Annotated[str, typer.Argument(help="a shipped recipe (see `recipes list`) or a .yaml")],
    model: Annotated[
        str | None,
        typer.Argument(help="a reference, .pt or .onnx", show_default="the recipe's own"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=".onnx to write", show_default="RECIPE.onnx"),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="folder of the run, where it goes on", show_default="runs/RECIPE"),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="one setting: --set prune.ratio=0.6")
    ] = None,
    max_drop: common.MaxDrop = None,
    samples: common.Samples = None,
    device: common.Device = "auto",
    data: common.Images = None,
    threads: common.Threads = 1,
    processes: common.Processes = 8,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Run a recipe: passes in order, every step judged, the last one benched against the model.

    The same command goes on where an earlier one was killed or interrupted.

    Examples:
        aigc-compress run cnn-edge

        aigc-compress run cnn-edge my-cnn.pt --set distill.settings.steps=2000 -o small.onnx
    """
    from aigc_compress.api import require_output
    from aigc_compress.errors import UsageError
    from aigc_compress.models.training.coach import TaskCoach
    from aigc_compress.recipe import load_recipe
    from aigc_compress.running import RunOptions
    from aigc_compress.running import run as run_recipe
    from aigc_compress.storage import write_bytes

    loaded = load_recipe(recipe, pairs(set_ or []))
    source = model or loaded.model
    if source is None:
        raise UsageError(f"The recipe {loaded.name} names no model: say which one to run it on.")
    target = output or Path(f"{loaded.name}.onnx")
    require_output(target, source)
    options = RunOptions(
        folder or Path("runs") / loaded.name,
        common.budget(max_drop or loaded.max_drop, None),
        samples,
        seed,
        common.latency_plan(threads, processes, seed),
    )
    with staged_progress(f"run {loaded.name}") as (on_step, on_stage):
        coach = TaskCoach(device=device, images=data, on_progress=say_news)
        result = run_recipe(
            loaded,
            source,
            options,
            coach,
            on_step=on_step,
            on_stage=on_stage,
            on_report=say_report,
        )
    write_bytes(target, result.output.read_bytes())
    if json:
        show_json({**result.document(), "output": str(target)})
        return
    show_run(result)
    answer = result.bench.rows[-1].judgement
    if answer is not None and not answer.within:
        say("Note: the result is outside the budget. Train longer, prune less, or allow more.")
    show(str(target))


def say_news(news: Progress) -> None:
    """Say what a validation found."""
    if news.quality is not None:
        quality = news.quality
        say(f"  step {news.done} of {news.total}: validation {quality.metric} {quality.value:.3f}")


def say_report(report: StepReport) -> None:
    """Say what a step's model needs and gives."""
    kept = " (from an earlier run)" if report.was_kept else ""
    value, change = quality_cells(report.judgement)
    speed = "" if report.speedup is None else f", {speed_text(report.speedup)}"
    say(f"{report.name}{kept}: {size_text(report.size_bytes)}{speed}, {value}, {change}")


def show_run(result: RunResult) -> None:
    """Show every step, and the last model beside the source."""
    from .bench_tables import show_result

    rows = []
    for each in result.steps:
        value, change = quality_cells(each.judgement)
        speed = "baseline" if each.speedup is None else speed_text(each.speedup)
        numbers = [f"{each.macs:,}", f"{each.parameters:,}", size_text(each.size_bytes), speed]
        rows.append([each.name, *numbers, value, change])
    columns = ["step", "MACs", "parameters", "size", "speed", "validation", "worse by (budget)"]
    show_table(result.recipe.name, columns, rows)
    show_result(result.bench)
