"""What the template shows, put together from the documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import sections, summary
from .charts import times_ms
from .document import Document
from .groups import Entry, Group, group_rows
from .matrix import make_matrices
from .sections import missing
from .wording import place_text

__all__ = ["make_context"]


def make_context(documents: Sequence[Document]) -> dict[str, Any]:
    """Return the template's variables by name."""
    groups = group_rows(documents)
    entries = [entry for group in groups for entry in group.entries]
    timed = [entry for entry in entries if entry.row.latency_ms is not None]
    return {
        "documents": documents,
        "places": list(dict.fromkeys(map(place_text, documents))),
        "matrices": make_matrices(groups),
        "cards": summary.make_cards([g for g in groups if not g.entries[0].is_of_peer]),
        "peer_cards": summary.make_cards([g for g in groups if g.entries[0].is_of_peer]),
        "tables": [(group, summary.make_lines(group)) for group in groups],
        "floors": summary.noise_floors(groups),
        "speed": sections.speed_figures(groups),
        "latency": sections.latency_figures(groups),
        "starts": sections.start_tables(groups),
        "quality": sections.quality_figures(timed),
        "details": sections.detail_tables(groups),
        "layers": sections.layer_figures(timed),
        "exhibits": sections.exhibits(groups),
        "operators": sections.operator_lists(timed),
        "digests": _digests(entries),
        "missing": _missing(groups, timed),
    }


def _missing(groups: Sequence[Group], timed: Sequence[Entry]) -> dict[str, str]:
    candidates = [each for each in timed if not each.row.is_baseline]
    controls = [group.baseline or group.entries[0] for group in groups]
    return {
        "control": missing(controls, lambda e: e.is_control, "the A/A control"),
        "speed": missing(
            timed, lambda e: bool(e.row.speedup), "speed beside a baseline", per_size=True
        ),
        "latency": missing(
            timed, lambda e: times_ms(e.row) is not None, "single times", per_size=True
        ),
        "quality": missing(timed, lambda e: e.row.quality is not None, "quality"),
        "layers": missing(
            timed, lambda e: bool(e.row.layers), "the time of single layers", per_size=True
        ),
        "exhibits": missing(timed, _has_exhibit, "something to look at or read"),
        "operators": missing(candidates, lambda e: bool(e.row.operators), "operators at run time"),
    }


def _has_exhibit(entry: Entry) -> bool:
    quality = entry.row.quality
    return quality is not None and quality.exhibit is not None


def _digests(entries: Sequence[Entry]) -> dict[str, str]:
    return {each.title: each.row.sha256 for each in entries if each.row.sha256}
