"""The sections below the summary, each with a line on what was not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .charts import Spot, draw_latency, draw_layers, draw_quality, draw_speed, times_ms
from .document import ExhibitData, Operators, Quality, Roofline
from .groups import Entry, Group, point_of
from .layers import tell_layers
from .pareto import pareto_front
from .wording import DASH, TIMES, call_text, number_text, size_text

__all__ = [
    "Figure",
    "Table",
    "detail_tables",
    "exhibits",
    "latency_figures",
    "layer_figures",
    "missing",
    "operator_lists",
    "quality_figures",
    "speed_figures",
    "start_tables",
]

Scatter = tuple[str, bool, str, str]
MOST_DETAILS = 60


@dataclass(frozen=True)
class Figure:
    """A chart with its title, what to say about it, and a numbered legend (if it has one)."""

    title: str
    chart: Markup
    notes: tuple[str, ...] = ()
    legend: tuple[tuple[Spot, str], ...] = ()
    is_open: bool = True


@dataclass(frozen=True)
class Table:
    """Names down the side, rows of the report across; a cell is a value and a note on it."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def missing(
    entries: Iterable[Entry], has: Callable[[Entry], bool], what: str, *, per_size: bool = False
) -> str:
    """Return `Not measured: …` for the models that lack something, or an empty text.

    Args:
        entries: the rows that could have it.
        has: whether a row has it.
        what: its name.
        per_size: whether it is measured anew for each batch size and length of a model.
    """
    found: dict[str, bool] = {}
    for entry in entries:
        point = point_of(entry.row) if per_size else ""
        name = entry.title + (f" at {point}" if point else "")
        found[name] = found.get(name, False) or has(entry)
    lacking = [name for name, is_there in found.items() if not is_there]
    if not lacking and found:
        return ""
    if len(lacking) == len(found):
        return f"Not measured: {what}."
    named = ", ".join(lacking[:8]) + (f" and {len(lacking) - 8} more" if len(lacking) > 8 else "")
    return f"Not measured: {what} of {named}."


def speed_figures(groups: Sequence[Group]) -> list[Figure]:
    """Return one chart of speed-ups per document that has any."""
    found: dict[int, list[Entry]] = {}
    for group in groups:
        for entry in group.entries:
            if entry.row.speedup:
                found.setdefault(id(entry.document), []).append(entry)
    return [
        Figure(entries[0].document.name, draw_speed(entries, name=f"speed{index}"))
        for index, entries in enumerate(found.values())
    ]


def latency_figures(groups: Sequence[Group]) -> list[Figure]:
    """Return one chart of distributions per group that has times."""
    figures = []
    for index, group in enumerate(groups):
        samples = [(each, times_ms(each.row)) for each in group.entries]
        entries = [each for each, times in samples if times is not None]
        if not entries:
            continue
        kinds = {times[1] for _, times in samples if times is not None}
        title = group.title + (f", {group.point}" if group.point else "")
        notes = tuple(_kind_note(is_calls) for is_calls in sorted(kinds, reverse=True))
        figures.append(Figure(title, draw_latency(entries, name=f"latency{index}"), notes))
    return figures


def quality_figures(entries: Sequence[Entry]) -> list[Figure]:
    """Return one chart per metric, call size and machine; others cannot be compared."""
    found: dict[Scatter, list[Entry]] = {}
    for entry in entries:
        quality = entry.row.quality
        if quality is None or quality.value is None or entry.row.latency_ms is None:
            continue
        found.setdefault(_scatter_of(entry, quality), []).append(entry)
    return [_quality_figure(key, group, i) for i, (key, group) in enumerate(found.items())]


def layer_figures(entries: Sequence[Entry]) -> list[Figure]:
    """Return one chart per row with layers; those of baselines are folded away."""
    return [
        Figure(
            f"{entry.title} on {entry.row.engine}{_at(entry)}",
            draw_layers(entry.row.layers, name=f"layers{index}"),
            tuple(tell_layers(entry.row.layers)),
            is_open=not entry.row.is_baseline,
        )
        for index, entry in enumerate(entries)
        if entry.row.layers
    ]


def exhibits(groups: Sequence[Group]) -> list[tuple[str, list[tuple[str, ExhibitData]]]]:
    """Return what the models of each group made, side by side, each model once."""
    shown: dict[tuple[int, str], dict[str, ExhibitData]] = {}
    for group in groups:
        for entry in group.entries:
            quality = entry.row.quality
            if quality is not None and quality.exhibit is not None:
                key = (id(entry.document), group.title)
                title = f"{entry.title} on {entry.row.engine}"
                shown.setdefault(key, {}).setdefault(title, quality.exhibit)
    return [(title, list(pairs.items())) for (_, title), pairs in shown.items()]


def operator_lists(entries: Sequence[Entry]) -> list[tuple[str, Operators]]:
    """Return the operators of each model, once, by title."""
    found: dict[str, Operators] = {}
    for entry in entries:
        if entry.row.operators:
            found.setdefault(f"{entry.title} on {entry.row.engine}", entry.row.operators)
    return list(found.items())


def detail_tables(groups: Sequence[Group]) -> list[Table]:
    """Return the further measures of quality of each group, its models side by side."""
    tables: dict[tuple[int, str], Table] = {}
    for group in groups:
        key = (id(group.entries[0].document), group.title)
        columns = {
            f"{each.title} on {each.row.engine}": dict(_flat(each.row.quality.details))
            for each in group.entries
            if each.row.quality is not None and each.row.quality.details
        }
        if columns and key not in tables:
            tables[key] = _table(group.title, columns)
    return list(tables.values())


def start_tables(groups: Sequence[Group]) -> list[Table]:
    """Return loading, first call and memory of each group."""
    tables = []
    for group in groups:
        timed = [each for each in group.entries if each.row.latency_ms is not None]
        columns = {f"{e.title} on {e.row.engine}": _start(e) for e in timed}
        if any(columns.values()):
            title = group.title + (f", {group.point}" if group.point else "")
            tables.append(_table(title, columns))
    return tables


def _kind_note(is_calls: bool) -> str:
    if is_calls:
        return (
            "Every timed call. Solid line: median; dotted: 90th percentile. "
            "The slowest 1% of calls are off the chart."
        )
    return "Not measured: single calls. Each dot is the median of one block; the line: of all."


def _at(entry: Entry) -> str:
    return "" if entry.row.batch is None else f", {call_text(entry.row)}"


def _scatter_of(entry: Entry, quality: Quality) -> Scatter:
    row, document = entry.row, entry.document
    samples = number_text(quality.samples) if quality.samples else "unknown number of"
    measured = f"{quality.split or 'unknown'} split, {samples} samples"
    threads = document.settings.get("threads", "unknown")
    machine = f"{document.machine.cpu or 'unknown processor'}, threads: {threads}"
    return (
        quality.metric,
        quality.higher_is_better,
        f"{row.batch or 1} {TIMES} {row.length or 1}, {measured}",
        machine,
    )


def _quality_figure(key: Scatter, entries: Sequence[Entry], index: int) -> Figure:
    metric, higher, where, machine = key
    pairs = sorted(
        ((entry.row.latency_ms or 0.0, _value(entry), entry) for entry in entries),
        key=lambda pair: pair[:2],
    )
    front = pareto_front([(ms, -value if higher else value) for ms, value, _ in pairs])
    legend = tuple(
        (_spot(number, ms, value, entry, is_on_front=number - 1 in front), _spot_name(entry))
        for number, (ms, value, entry) in enumerate(pairs, start=1)
    )
    chart = draw_quality([spot for spot, _ in legend], metric, higher=higher, name=f"q{index}")
    point = point_of(entries[0].row)
    title = metric + (f", {point}" if point else "")
    return Figure(title, chart, (f"Batch {TIMES} length {where}, on {machine}.",), legend)


def _value(entry: Entry) -> float:
    quality = entry.row.quality
    assert quality is not None
    assert quality.value is not None
    return quality.value


def _spot(number: int, ms: float, value: float, entry: Entry, *, is_on_front: bool) -> Spot:
    quality = entry.row.quality
    is_within = quality is None or quality.within
    return Spot(number, ms, value, entry.row.is_baseline, is_within, is_on_front)


def _spot_name(entry: Entry) -> str:
    return f"{entry.title} on {entry.row.engine}"


def _start(entry: Entry) -> dict[str, tuple[str, str]]:
    row = entry.row
    told = {
        "session creation": _with_unit(row.load_ms, "ms"),
        "first call": _with_unit(row.first_ms, "ms"),
        "throughput": _with_unit(row.samples_per_second, "samples/s"),
        "peak memory": size_text(row.peak_resident_bytes),
        "file after gzip": size_text(row.compressed_bytes),
    }
    cells = {name: (text, "") for name, text in told.items() if text != DASH}
    if row.roofline is not None:
        cells["least time by the roofline"] = _roofline_cell(row.roofline)
    return cells


def _with_unit(value: float | None, unit: str) -> str:
    return DASH if value is None else f"{number_text(value)} {unit}"


def _roofline_cell(limit: Roofline) -> tuple[str, str]:
    reached = "" if limit.efficiency is None else f", {limit.efficiency:.0%} reached"
    return f"{number_text(limit.milliseconds)} ms", f"set by {limit.bound_by}{reached}"


def _table(title: str, columns: Mapping[str, Mapping[str, tuple[str, str]]]) -> Table:
    names = list(dict.fromkeys(name for cells in columns.values() for name in cells))
    lines = tuple(
        (name, tuple(cells.get(name, (DASH, "")) for cells in columns.values()))
        for name in names[:MOST_DETAILS]
    )
    return Table(title, tuple(columns), lines)


def _flat(details: Mapping[str, Any], lead: str = "") -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield every measure with its cell; those inside a mapping stand under its name."""
    for name, value in details.items():
        spoken = lead + name.replace("_", " ")
        if isinstance(value, Mapping) and "value" not in value:
            yield from _flat(value, f"{spoken}: ")
        else:
            yield spoken, _cell(value)


def _cell(value: Any) -> tuple[str, str]:
    if isinstance(value, Mapping):
        return _plain(value.get("value")), _note(value)
    return _plain(value), ""


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number_text(float(value))
    if value is None:
        return "not finite"
    return str(value)[:200]


def _note(measure: Mapping[str, Any]) -> str:
    """Return the interval, the direction and the samples of a measure, as far as they are told."""
    parts = []
    low, high = measure.get("low"), measure.get("high")
    if isinstance(low, int | float) and isinstance(high, int | float):
        parts.append(f"{number_text(float(low))} to {number_text(float(high))}")
    if isinstance(measure.get("samples"), int):
        parts.append(f"n {number_text(float(measure['samples']))}")
    return ", ".join(parts)
