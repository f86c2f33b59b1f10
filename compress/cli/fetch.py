"""`aigc-compress fetch`: write a shipped model into the current folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aigc_compress.console import show
from aigc_compress.errors import OutputError
from aigc_compress.storage import require_writable, write_bytes

__all__ = ["fetch"]


def fetch(
    name: Annotated[str, typer.Argument(help="gan, cnn, rnn, rnn-gru, or gan-, cnn- or rnn-edge")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="file to write", show_default="NAME.pt, NAME-edge.onnx"
        ),
    ] = None,
    force: Annotated[bool, typer.Option(help="overwrite another file of that name")] = False,
) -> None:
    """Write a trained reference as a .pt file, or what its edge recipe made of it as .onnx.

    Examples:
        aigc-compress fetch gan

        aigc-compress fetch cnn-edge -o classifier.onnx
    """
    from aigc_compress.models.registry import weights_path

    shipped = weights_path(name)
    content = shipped.read_bytes()
    target = output or Path(shipped.name)
    require_writable(target)
    if target.is_file() and not force and target.read_bytes() != content:
        raise OutputError(f"{target} holds something else; --force overwrites it.")
    write_bytes(target, content)
    show(str(target))
