"""Peers beside each other: a row per peer, a column per model, the speed with its verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .chips import Chip, quality_chip, speed_chip
from .document import Row
from .groups import Group
from .wording import interval_text, ms_text, place_text, ratio_text

__all__ = ["Cell", "Matrix", "make_matrices"]


@dataclass(frozen=True)
class Cell:
    """What one peer made of one model; `outside` is None where the quality is in its budget."""

    speed: str
    note: str
    chip: Chip
    outside: Chip | None
    row: Row


@dataclass(frozen=True)
class Matrix:
    """All peers on one machine; a cell is None where a peer was not asked."""

    place: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def make_matrices(groups: Sequence[Group]) -> list[Matrix]:
    """Return a matrix per machine and number of threads that peers were measured on."""
    places: dict[str, list[Group]] = {}
    for group in groups:
        first = group.entries[0]
        if first.is_of_peer:
            places.setdefault(place_text(first.document, with_flags=True), []).append(group)
    return [_matrix(place, found) for place, found in places.items()]


def _matrix(place: str, groups: Sequence[Group]) -> Matrix:
    peers = _unique(name for group in groups for name in _by_peer(group))
    cells = [{name: _cell(row) for name, row in _by_peer(group).items()} for group in groups]
    lines = tuple((peer, tuple(each.get(peer) for each in cells)) for peer in peers)
    return Matrix(place, tuple(map(_heading, groups)), lines)


def _by_peer(group: Group) -> dict[str, Row]:
    return {each.row.peer or each.title: each.row for each in group.entries}


def _heading(group: Group) -> str:
    model = group.entries[0].model
    return f"{model}, {group.point}" if group.point else model


def _cell(row: Row) -> Cell:
    chip, speedup = speed_chip(row), row.speedup
    quality = None if row.is_baseline else quality_chip(row.quality)
    outside = quality if quality and quality.tone == "bad" else None
    if row.latency_ms is None or speedup is None:
        return Cell("" if row.latency_ms is None else _ms(row), "", chip, outside, row)
    ends = interval_text(speedup)
    if row.is_baseline:
        return Cell(_ms(row), f"A/A {ends}", chip, None, row)
    return Cell(ratio_text(speedup.ratio), ends, chip, outside, row)


def _ms(row: Row) -> str:
    return f"{ms_text(row.latency_ms)} ms"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
