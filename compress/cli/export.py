"""`aigc-compress export`: torch to ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aigc_compress.console import say, show, show_json

from . import options as common

__all__ = ["export"]


def export(
    model: Annotated[str, typer.Argument(help="gan, cnn, rnn, rnn-gru or a .pt file")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=".onnx to write [MODEL.onnx]")
    ] = None,
    opset: Annotated[int, typer.Option(min=17, max=23, help="ONNX operator set")] = 20,
    json: common.Json = False,
) -> None:
    """Export a torch model to ONNX with dynamic batch (and time), BatchNorm folded.

    The file appears only after the graph gave torch's numbers at two batch sizes and lengths.

    Example: aigc-compress export gan.pt -o gan.onnx
    """
    from aigc_compress.api import export as run

    target = output or Path(f"{Path(model).stem}.onnx")
    artifact = run(model, target, opset=opset)
    numbers = dict(artifact.history[-1].numbers)
    if json:
        show_json({"schema": "aigc-compress/export/1", "output": str(target), **numbers})
        return
    say(f"Largest difference to torch: {numbers['largest_relative_difference']:.1e} of the output.")
    show(str(target))
