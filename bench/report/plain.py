"""What a report shows, as plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .chips import speed_chip
from .document import Document, Row
from .groups import Entry, group_rows
from .matrix import Cell, Matrix, make_matrices
from .summary import Card, make_cards, noise_floors

__all__ = ["report_document"]

SHOWN = ("engine", "batch", "length", "is_baseline", "size_bytes")
JUDGED = ("metric", "higher_is_better", "value", "baseline", "drop", "budget", "within", "samples")


def report_document(documents: Sequence[Document]) -> dict[str, Any]:
    """Return the sentences, rows and comparisons of a report; times in ms, sizes in bytes."""
    groups = group_rows(documents)
    return {
        "schema": "aigc-compress/report/1",
        "documents": [_source(each) for each in documents],
        "peers": [_comparison(each) for each in make_matrices(groups)],
        "candidates": [_candidate(each) for each in make_cards(groups)],
        "rows": [_line(entry) for group in groups for entry in group.entries],
        "noise_floors": noise_floors(groups),
    }


def _source(document: Document) -> dict[str, Any]:
    return {
        "name": document.name,
        "schema": document.schema_name,
        "machine": document.machine.model_dump(mode="json"),
        "complaint": document.trust.complaint if document.trust else None,
        "notes": list(document.notes),
    }


def _comparison(matrix: Matrix) -> dict[str, Any]:
    lines = {peer: [_cell(each) for each in cells] for peer, cells in matrix.lines}
    return {"place": matrix.place, "models": list(matrix.columns), "peers": lines}


def _cell(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    quality = cell.row.quality
    return {**_timing(cell.row), "within": quality.within if quality else None}


def _candidate(card: Card) -> dict[str, Any]:
    told = {"title": card.title, "engine": card.engine, "document": card.source}
    return {**told, "sentence": f"{card.title} {card.sentence}."}


def _line(entry: Entry) -> dict[str, Any]:
    row = entry.row
    quality = row.quality.model_dump(mode="json", include=set(JUDGED)) if row.quality else None
    return {
        "document": entry.document.name,
        "title": entry.title,
        **{name: getattr(row, name) for name in SHOWN},
        **_timing(row),
        "quality": quality,
    }


def _timing(row: Row) -> dict[str, Any]:
    return {
        "latency_ms": row.latency_ms,
        "speedup": row.speedup.model_dump(mode="json") if row.speedup else None,
        "verdict": speed_chip(row).word,
        "error": row.error,
    }
