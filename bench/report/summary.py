"""The top of the report: a card with a sentence per candidate, and the table of all rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .chips import Chip, quality_chip, speed_chip
from .document import Quality, Row, Speedup
from .groups import Entry, Group, point_of
from .wording import (
    DASH,
    call_text,
    interval_text,
    ms_text,
    number_text,
    ratio_text,
    sentence,
    size_clause,
    size_text,
)

__all__ = ["Card", "Line", "Scale", "make_cards", "make_lines", "noise_floors"]


@dataclass(frozen=True)
class Scale:
    """A speed-up on a strip, all in percent of its width; `one` is where nothing changes."""

    label: str
    text: str
    interval: str
    chip: Chip
    one: float
    low: float
    high: float
    ratio: float


@dataclass(frozen=True)
class Card:
    """One candidate at all its batch sizes and lengths."""

    title: str
    engine: str
    source: str
    sentence: str
    tone: str
    size: str
    size_note: str
    scales: tuple[Scale, ...]
    quality: Quality | None
    quality_chip: Chip | None
    budget_note: str
    error: str | None


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    title: str
    engine: str
    size_of_call: str
    size: str
    size_note: str
    median: str
    p90: str
    speed: str
    interval: str
    chip: Chip
    quality: str
    metric: str
    quality_chip: Chip | None
    budget_note: str
    is_baseline: bool
    error: str | None


def make_cards(groups: Sequence[Group]) -> list[Card]:
    """Return a card per candidate; its batch sizes and lengths stand together."""
    found: dict[tuple[int, str, str, str], list[tuple[Entry, Entry | None]]] = {}
    for group in groups:
        for entry in group.candidates:
            key = (id(entry.document), group.title, entry.title, entry.row.engine)
            found.setdefault(key, []).append((entry, group.baseline))
    return [_card([entry for entry, _ in pairs], pairs[0][1]) for pairs in found.values()]


def make_lines(group: Group) -> list[Line]:
    """Return the rows of a group's table."""
    return [_line(entry, group.baseline) for entry in group.entries]


def noise_floors(groups: Sequence[Group]) -> list[str]:
    """Tell for each group what chance alone does: the baseline against itself."""
    told = []
    for group in groups:
        speedup = group.baseline.row.speedup if group.baseline else None
        if group.baseline is None or speedup is None:
            continue
        name = group.title + (f" at {group.point}" if group.point else "")
        note = "" if speedup.verdict == "no difference shown" else "; it should hold 1: take care"
        told.append(f"{name}: {interval_text(speedup)}{note}")
    return told


def _card(entries: Sequence[Entry], baseline: Entry | None) -> Card:
    timed = [each for each in entries if each.row.latency_ms is not None]
    row = (timed or entries)[0].row
    quality = row.quality
    before = baseline.row.size_bytes if baseline else None
    return Card(
        title=entries[0].title,
        engine=row.engine,
        source=entries[0].document.name,
        sentence=sentence(entries, baseline),
        tone=_tone(entries, quality),
        size=size_clause(before, row.size_bytes) or size_text(row.size_bytes),
        size_note=_size_note(before, row),
        scales=_scales([each.row for each in timed]),
        quality=quality,
        quality_chip=quality_chip(quality),
        budget_note=_budget_note(quality),
        error=None if timed else row.error,
    )


def _line(entry: Entry, baseline: Entry | None) -> Line:
    row = entry.row
    before = baseline.row.size_bytes if baseline else None
    p90 = (row.percentiles_ms or {}).get("p90")
    quality = row.quality
    return Line(
        title=entry.title,
        engine=row.engine,
        size_of_call=call_text(row),
        size=size_text(row.size_bytes),
        size_note="" if row.is_baseline else (size_clause(before, row.size_bytes) or ""),
        median=ms_text(row.latency_ms),
        p90=DASH if p90 is None else "too few calls" if p90.high is None else ms_text(p90.value),
        speed=ratio_text(row.speedup.ratio) if row.speedup else DASH,
        interval=interval_text(row.speedup) if row.speedup else "",
        chip=speed_chip(row),
        quality=number_text(quality.value) if quality else DASH,
        metric=quality.metric if quality else "",
        quality_chip=None if row.is_baseline else quality_chip(quality),
        budget_note="" if row.is_baseline else _budget_note(quality),
        is_baseline=row.is_baseline,
        error=row.error,
    )


def _tone(entries: Sequence[Entry], quality: Quality | None) -> str:
    """Return bad where anything is worse than promised, good where something was gained."""
    tones = {speed_chip(each.row).tone for each in entries}
    if "bad" in tones or (quality is not None and not quality.within):
        return "bad"
    return "good" if "good" in tones else "calm"


def _budget_note(quality: Quality | None) -> str:
    """Return by how much the quality is worse, and how much it may be."""
    if quality is None or quality.budget is None:
        return ""
    if quality.drop is None:
        return f"at least {number_text(quality.budget)} asked"
    if quality.drop <= 0:
        change = "no worse" if quality.drop == 0 else f"better by {number_text(-quality.drop)}"
    else:
        change = f"worse by {number_text(quality.drop)}"
    return f"{change}, {number_text(quality.budget)} allowed"


def _size_note(before: int | None, row: Row) -> str:
    if before and row.size_bytes is not None:
        return f"{size_text(before)} → {size_text(row.size_bytes)}"
    return "" if row.size_bytes is None else size_text(row.size_bytes)


def _scales(rows: Sequence[Row]) -> tuple[Scale, ...]:
    """Return the strips of a card, all on one logarithmic scale around 1."""
    pairs = [(row, row.speedup) for row in rows if row.speedup]
    spans = [abs(math.log(end)) for _, s in pairs if s for end in (s.low, s.high)]
    span = max([math.log(1.25), *spans]) * 1.08
    return tuple(_scale(row, speedup, span) for row, speedup in pairs if speedup)


def _scale(row: Row, speedup: Speedup, span: float) -> Scale:
    low, ratio, high = (
        50 + 50 * math.log(each) / span for each in (speedup.low, speedup.ratio, speedup.high)
    )
    return Scale(
        label=point_of(row),
        text=ratio_text(speedup.ratio),
        interval=interval_text(speedup),
        chip=speed_chip(row),
        one=50,
        low=low,
        high=high,
        ratio=min(100.0, max(0.0, ratio)),
    )
