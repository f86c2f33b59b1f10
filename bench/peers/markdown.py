"""The comparison of peers as a Markdown table: a row per peer, a column per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["markdown_table"]


def markdown_table(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return speed-ups over ONNX Runtime FP32 of the documents that `-o` wrote.

    A cell tells the ratio, in bold where the peer is shown to be faster within the budget, and what
    spoils it otherwise.
    """
    rows = [row for document in documents for row in document["rows"]]
    models = list(dict.fromkeys(row["model"] for row in rows))
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    cells = {(row["peer"], row["model"]): _cell(row) for row in rows}
    lines = [
        ["peer", *(model.removesuffix(".onnx") for model in models)],
        ["---"] * (len(models) + 1),
        *([peer, *(cells.get((peer, model), "-") for model in models)] for peer in peers),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: Mapping[str, Any]) -> str:
    if row["error"]:
        return "fails"
    ratio = f"{row['speedup']['ratio']:.2f}"
    if row["is_baseline"]:
        return f"1 (A/A {ratio})"
    is_within = row["quality"] is None or row["quality"]["within"]
    if not is_within:
        return f"{ratio}, quality outside"
    return f"**{ratio}**" if row["verdict"] == "faster" else f"{ratio}, {row['verdict']}"
