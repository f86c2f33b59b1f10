"""`aigc-compress train`: train a reference model, or go on with an interrupted run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aigc_compress.console import progress, say, show

from .settings import pairs

if TYPE_CHECKING:
    from aigc_compress.models.training.loop import Progress

from . import options as common

__all__ = ["train"]


def train(
    name: Annotated[str, typer.Argument(help="gan, cnn or rnn")],
    config: Annotated[Path | None, typer.Option(help="YAML file with settings")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="one setting, e.g. --set model.cell=gru")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="optimizer steps")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="seed of the run")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="run folder", show_default="runs/NAME")
    ] = None,
    device: common.Device = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch's choice")] = 0,
    start_from: Annotated[
        str | None, typer.Option(help="begin with this .pt or reference, pruned or not")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="learn from this .pt or reference as well (distillation)")
    ] = None,
    data: common.Images = None,
    checkpoint_minutes: Annotated[float, typer.Option(min=0, help="between checkpoints")] = 5.0,
) -> None:
    """Train a reference model; the same command goes on with an interrupted run.

    Writes runs/NAME/NAME.pt and its card NAME.json; logs for TensorBoard, samples and the
    checkpoint stand beside them.

    Examples:
        aigc-compress train rnn --set model.cell=gru --folder runs/gru

        aigc-compress train gan --start-from gan.pt --steps 5000 --folder runs/longer

        aigc-compress train cnn --teacher cnn --set model.widths=[16,32,64] --folder runs/small
    """
    import torch

    from aigc_compress.loading import resolve_source
    from aigc_compress.models.training import load_training_config, train_reference
    from aigc_compress.models.training.loop import RunOptions

    flags = {"steps": steps, "seed": seed}
    overrides = pairs(set_ or []) | {k: v for k, v in flags.items() if v is not None}
    settings = load_training_config(name, config, overrides)
    options = RunOptions(folder or Path("runs") / name, checkpoint_minutes)
    if threads:
        torch.set_num_threads(threads)
    with progress(f"train {name}") as on_step:

        def report(news: Progress) -> None:
            on_step(news.done, news.total)
            _say_news(news)

        path = train_reference(
            name,
            settings,
            options,
            device=device,
            images=data,
            start=resolve_source(start_from) if start_from else None,
            teacher=resolve_source(teacher) if teacher else None,
            command=shlex.join(["aigc-compress", *sys.argv[1:]]),
            on_progress=report,
            on_download=on_step,
        )
    show(str(path))


def _say_news(news: Progress) -> None:
    from .tables import detail_lines

    if news.quality is not None:
        quality = news.quality
        say(f"step {news.done}: validation {quality.metric} {quality.value:.3f}")
        for line in detail_lines(quality.details):
            say(f"  {line}")
    elif news.done % (news.total // 20 or 1) < 50:
        losses = ", ".join(f"{name} {value:.3f}" for name, value in news.losses.items())
        say(f"step {news.done} of {news.total}: {losses}")
