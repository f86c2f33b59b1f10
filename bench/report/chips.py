"""Verdicts on speed and quality as chips."""

from __future__ import annotations

from dataclasses import dataclass

from .document import Quality, Row
from .wording import DASH

__all__ = ["Chip", "quality_chip", "speed_chip"]


@dataclass(frozen=True)
class Chip:
    """A verdict: its word, a symbol that stands without colour too, and a tone."""

    word: str
    symbol: str
    tone: str


SPEED_CHIPS = {
    "faster": Chip("faster", "▲", "good"),
    "slower": Chip("slower", "▼", "bad"),
    "no difference shown": Chip("no difference shown", "≈", "calm"),
}
FAILED = Chip("failed", "✕", "bad")
BASELINE = Chip("baseline", "○", "calm")
UNKNOWN = Chip("not compared", DASH, "calm")
WITHIN = Chip("within budget", "✓", "good")
OUTSIDE = Chip("outside budget", "✕", "bad")


def speed_chip(row: Row) -> Chip:
    """Return the verdict on a row's speed."""
    if row.latency_ms is None:
        return FAILED
    if row.is_baseline:
        return BASELINE
    return SPEED_CHIPS[row.speedup.verdict] if row.speedup else UNKNOWN


def quality_chip(quality: Quality | None) -> Chip | None:
    """Return the verdict on a quality, or None where none was measured."""
    if quality is None:
        return None
    return WITHIN if quality.within else OUTSIDE
