"""Which rows belong side by side: a baseline and what competes with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .document import Document, Row

__all__ = ["Entry", "Group", "group_rows", "point_of"]

PEERS = "aigc-compress/peers/1"
SUFFIXES = (".onnx", ".pt", ".pt2", ".engine")


@dataclass(frozen=True)
class Entry:
    """A row and the document that it stands in."""

    row: Row
    document: Document

    @property
    def model(self) -> str:
        """Return the model's name without a file's suffix."""
        return _without_suffix(self.row.model)

    @property
    def title(self) -> str:
        """Return the model's name, and the peer's."""
        return f"{self.model} by {self.row.peer}" if self.row.peer else self.model

    @property
    def is_of_peer(self) -> bool:
        """Whether the document compares toolkits rather than files."""
        return self.document.schema_name == PEERS

    @property
    def is_control(self) -> bool:
        """Whether the speed-up is that of a baseline against itself."""
        return self.row.is_baseline and self.row.speedup is not None


@dataclass(frozen=True)
class Group:
    """Rows at one batch size and length, in the order of their document."""

    entries: tuple[Entry, ...]

    @property
    def baseline(self) -> Entry | None:
        """Return the row that the others are compared with, if the document has it."""
        return next((each for each in self.entries if each.row.is_baseline), None)

    @property
    def candidates(self) -> tuple[Entry, ...]:
        """Return all rows but the baseline."""
        return tuple(each for each in self.entries if each is not self.baseline)

    @property
    def title(self) -> str:
        """Return the baseline's name, or what the names of all rows begin with."""
        lead = self.baseline or self.entries[0]
        return lead.title if self.baseline else _family(lead.row)

    @property
    def point(self) -> str:
        """Return batch and length in words, empty for a single sample of one step."""
        return point_of(self.entries[0].row)


def group_rows(documents: Sequence[Document]) -> list[Group]:
    """Return the groups of all documents, in order."""
    return [group for document in documents for group in _groups_of(document)]


def point_of(row: Row) -> str:
    """Return batch and length in words, empty for a single sample of one step."""
    parts = [("batch", row.batch), ("length", row.length)]
    return ", ".join(f"{name} {size}" for name, size in parts if size not in (None, 1))


def _groups_of(document: Document) -> Iterator[Group]:
    rows: list[Row] = []
    for row in document.rows:
        if rows and _starts_group(row, rows):
            yield _group(rows, document)
            rows = []
        rows.append(row)
    yield _group(rows, document)


def _group(rows: Sequence[Row], document: Document) -> Group:
    return Group(tuple(Entry(row, document) for row in rows))


def _starts_group(row: Row, before: Sequence[Row]) -> bool:
    """Whether a row begins a group; without a baseline, the first word of the name tells."""
    first = before[0]
    has_size = row.batch is not None and first.batch is not None
    if row.is_baseline or (has_size and (row.batch, row.length) != (first.batch, first.length)):
        return True
    return _family(row) != _family(first) and not first.is_baseline


def _family(row: Row) -> str:
    return row.model.split(".")[0] or row.model


def _without_suffix(name: str) -> str:
    for suffix in SUFFIXES:
        if name.endswith(suffix) and len(name) > len(suffix):
            return name.removesuffix(suffix)
    return name
