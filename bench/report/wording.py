"""How numbers, sizes and verdicts read."""

from __future__ import annotations

from collections.abc import Sequence

from .document import Document, Quality, Row, Speedup
from .groups import Entry, point_of

__all__ = [
    "DASH",
    "TIMES",
    "call_text",
    "interval_text",
    "ms_text",
    "number_text",
    "place_text",
    "quality_clause",
    "ratio_text",
    "sentence",
    "size_clause",
    "size_text",
    "speed_clause",
]

TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"
SAME_SIZE = 0.02  # sizes this near each other read as the same


def number_text(value: float | None) -> str:
    """Return a number with four digits that count, thousands set apart."""
    if value is None:
        return "not finite"
    if value == 0:
        return "0"
    if abs(value) >= 1e7 or abs(value) < 1e-4:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    decimals = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    text = f"{value:.{decimals}f}" if abs(value) >= 0.1 else f"{value:#.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def ms_text(value: float | None) -> str:
    """Return milliseconds, three decimals below ten, or a dash."""
    return DASH if value is None else number_text(value)


def size_text(size_bytes: int | None) -> str:
    """Return a size in MB or kB (powers of ten), or a dash."""
    if size_bytes is None:
        return DASH
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.2f} GB"
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


def call_text(row: Row) -> str:
    """Return batch by length of a timed call, or a dash where the row does not tell."""
    return DASH if row.batch is None else f"{row.batch} {TIMES} {row.length or 1}"


def ratio_text(ratio: float) -> str:
    """Return a ratio with two decimals, or three digits that count where it is large or tiny."""
    return f"{ratio:.2f}{TIMES}" if 0.1 <= ratio < 100 else f"{ratio:.3g}{TIMES}"


def interval_text(speedup: Speedup) -> str:
    """Return both ends; an end beside 1 is not rounded to it, since 1 decides the verdict."""
    return f"{_end_text(speedup.low)}{DASH}{_end_text(speedup.high)}"


def _end_text(end: float) -> str:
    text = ratio_text(end)[:-1]
    if text != "1.00" or end == 1:
        return text
    return (
        f"{end:.3f}" if abs(end - 1) >= 0.0005 else ("just below 1" if end < 1 else "just over 1")
    )


def place_text(document: Document, *, with_flags: bool = False) -> str:
    """Return processor and threads, and what the processor can do if asked."""
    told = document.machine.cpu or "unknown processor"
    if with_flags and document.machine.flags:
        told += f" with {', '.join(document.machine.flags)}"
    threads = document.settings.get("threads")
    return told if threads is None else f"{told}, {threads} thread{'' if threads == 1 else 's'}"


def size_clause(before: int | None, after: int | None) -> str | None:
    """Return how the size changed in words; None where a size is missing."""
    if not before or not after:
        return None
    if abs(after / before - 1) <= SAME_SIZE:
        return "the same size"
    word = "smaller" if after < before else "larger"
    factor = max(before, after) / min(before, after)
    return (
        f"{factor:.1f}{TIMES} {word}" if factor >= 1.1 else f"{abs(after / before - 1):.0%} {word}"
    )


def speed_clause(row: Row) -> str:
    """Return the speed beside the baseline in words, with its interval."""
    speedup = row.speedup
    if speedup is None:
        return "speed not compared"
    ratio, ends = ratio_text(speedup.ratio), interval_text(speedup)
    if speedup.verdict == "faster":
        return f"{ratio} faster ({ends})"
    if speedup.verdict == "slower":
        return f"slower with {ratio} the speed ({ends})"
    return f"no speed difference shown ({ends})"


def quality_clause(quality: Quality | None) -> str:
    """Return whether the quality is within its budget, in words."""
    if quality is None:
        return "quality not measured"
    return "quality within budget" if quality.within else "quality outside the budget"


def sentence(entries: Sequence[Entry], baseline: Entry | None) -> str:
    """Return one sentence on a candidate at all its batch sizes and lengths.

    A failed candidate has its error in the first entry; the sentence says only that it failed.
    """
    timed = [each for each in entries if each.row.latency_ms is not None]
    if not timed:
        return "could not be measured"
    before = baseline.row.size_bytes if baseline else None
    size = size_clause(before, timed[0].row.size_bytes)
    speeds = [_at(each.row, is_alone=len(timed) == 1) for each in timed]
    parts = [size, *speeds, quality_clause(timed[0].row.quality)]
    return "is " + ", ".join(part for part in parts if part)


def _at(row: Row, *, is_alone: bool) -> str:
    where = point_of(row) or ("" if is_alone else "batch 1")
    return speed_clause(row) + (f" at {where}" if where else "")
