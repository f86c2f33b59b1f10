"""`aigc-compress info`: what a file is, and how it was made."""

from __future__ import annotations

import json as json_module
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aigc_compress.console import show_json, show_table

from . import options as common

if TYPE_CHECKING:
    from aigc_compress.artifact import Artifact

__all__ = ["info"]


def info(
    file: Annotated[str, typer.Argument(help="gan, cnn, rnn, rnn-gru, a .pt or an .onnx file")],
    json: common.Json = False,
) -> None:
    """Show stage, task, inputs, outputs, operators, size and history of a model.

    Example: aigc-compress info gan.int8.onnx
    """
    from aigc_compress.loading import load_artifact, resolve_source

    artifact = load_artifact(file)
    document = {
        "schema": "aigc-compress/info/1",
        "file": file,
        "stage": artifact.stage,
        "task": artifact.task,
        "size_bytes": resolve_source(file).stat().st_size,
        "sha256": artifact.source_sha256,
        **_describe(artifact),
        "history": [asdict(step) for step in artifact.history],
    }
    if json:
        show_json(document)
        return
    rows = [[key, _short(value)] for key, value in document.items() if key != "history"]
    show_table(file, ["", "value"], rows)
    steps = [
        [step.name, _short(dict(step.config)), _short(dict(step.numbers))]
        for step in artifact.history
    ]
    if steps:
        show_table("history", ["step", "settings", "numbers"], steps)


def _describe(artifact: Artifact) -> dict[str, Any]:
    if artifact.stage == "torch":
        parameters = sum(each.numel() for each in artifact.payload.parameters())
        kinds = Counter(
            type(m).__name__ for m in artifact.payload.modules() if not list(m.children())
        )
        return {
            "inputs": list(artifact.payload.input_names),
            "outputs": list(artifact.payload.output_names),
            "parameters": parameters,
            "operators": dict(kinds.most_common()),
        }
    from aigc_compress.artifact import graph_tensors

    inputs, outputs = graph_tensors(artifact.payload)
    return {
        "opset": {o.domain or "ai.onnx": o.version for o in artifact.payload.opset_import},
        "inputs": [asdict(tensor) for tensor in inputs],
        "outputs": [asdict(tensor) for tensor in outputs],
        "operators": dict(Counter(n.op_type for n in artifact.payload.graph.node).most_common()),
    }


def _short(value: Any, limit: int = 400) -> str:
    text = value if isinstance(value, str) else json_module.dumps(value)
    return text if len(text) <= limit else text[:limit] + " ... (--json shows all)"
