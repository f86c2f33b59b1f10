"""`aigc-compress sample`: see what a model makes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from aigc_compress.console import show
from aigc_compress.errors import UsageError

from . import options as common

if TYPE_CHECKING:
    from aigc_compress.task import Runner, Task

__all__ = ["sample"]


def sample(
    model: Annotated[str, typer.Argument(help="gan or rnn, or a .pt or .onnx file of these tasks")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="PNG (gan) or text file (rnn)")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="images [64] or characters", show_default="400"),
    ] = None,
    prompt: Annotated[str, typer.Option(help="beginning of the text")] = "In the beginning",
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest character")] = 0.7,
    top_k: Annotated[int, typer.Option(min=0, help="among the k likeliest; 0: all")] = 0,
    seed: common.Seed = 0,
) -> None:
    """Draw a grid of images, or write text, with a model at any stage.

    Examples:
        aigc-compress sample gan.onnx -o grid.png

        aigc-compress sample rnn.int8.onnx --prompt "In the beginning"
    """
    from aigc_compress.engines import ENGINES
    from aigc_compress.loading import load_artifact
    from aigc_compress.models.tasks import make_task

    artifact = load_artifact(model)
    if artifact.task not in ("gan", "rnn") or artifact.spec is None:
        raise UsageError(f"{model} neither draws nor writes (its task is {artifact.task}).")
    engine = next(e for e in ENGINES.values() if e.stage == artifact.stage)
    session = engine.load(artifact, threads=os.cpu_count() or 1)
    task = make_task(artifact.task, artifact.spec.config, artifact.spec.sizes)
    if artifact.task == "gan":
        _draw(session, task, output or Path(f"{Path(model).stem}.png"), count or 64, seed)
    else:
        settings = {"temperature": temperature, "top_k": top_k, "seed": seed}
        _write(session, task, output, prompt, count or 400, settings)


def _draw(session: Runner, task: Task, output: Path, count: int, seed: int) -> None:
    from aigc_compress.models.training.pictures import save_grid
    from aigc_compress.storage import require_writable
    from aigc_compress.task import batches

    require_writable(output)
    latents = task.feeds(count, seed=seed)["z"]
    outputs = [session.run({"z": latents[part]}) for part in batches(count, 100)]
    if "image" not in outputs[0]:
        raise UsageError(f"The model has no output 'image', only {', '.join(outputs[0])}.")
    images = [each["image"] for each in outputs]
    show(str(save_grid(np.concatenate(images), output)))


def _write(
    session: Runner,
    task: Task,
    output: Path | None,
    prompt: str,
    count: int,
    settings: dict[str, Any],
) -> None:
    from aigc_compress.models.tasks.rnn import WriteText
    from aigc_compress.models.text import Writer
    from aigc_compress.storage import require_writable, write_bytes

    assert isinstance(task, WriteText)
    if output is not None:
        require_writable(output)
    writer = Writer(session, task).write(prompt, count, **settings)
    if output is None:
        print(prompt + next(writer), end="", flush=True)  # nothing where the prompt is refused
        for character in writer:
            print(character, end="", flush=True)
        print()
        return
    write_bytes(output, (prompt + "".join(writer) + "\n").encode())
    show(str(output))
