"""One self-contained HTML page of an analysis: a heat map of layers, and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aigc_compress.errors import NotOnThisMachineError
from aigc_compress.passes.saturation import Saturation

from .result import Analysis, LayerResult
from .words import saturation_text, summarize

__all__ = ["Cell", "render_analysis"]

TEMPLATE = "page.html.j2"
CALM_DB, HOT_DB = 60.0, 10.0  # no colour at the one, full colour at the other
DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """One cell of the heat map: its text, and how strong its colour is, 0 to 100.

    `tone` is `harm`, `gain`, `loss` or empty.
    """

    label: str
    text: str
    tone: str = ""
    heat: int = 0


def render_analysis(found: Analysis) -> str:
    """Return a page that shows the analysis; it loads nothing and runs no script.

    Raises:
        NotOnThisMachineError: Jinja2 is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise NotOnThisMachineError(
            "jinja2 is not installed: pip install 'aigc-compress[compress]'"
        ) from error
    from aigc_compress.bench import report

    folders = [Path(__file__).parent, Path(report.__file__).parent]  # the reports share one style
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["db"] = db_text
    return environment.get_template(TEMPLATE).render(_variables(found))


def db_text(value: float | None) -> str:
    """Return decibels with one decimal, or a dash."""
    return DASH if value is None else f"{value:.1f}".replace("-", "\N{MINUS SIGN}")


def _variables(found: Analysis) -> Mapping[str, Any]:
    longest = max((abs(each.saved_ms or 0.0) for each in found.layers), default=0.0)
    whole = found.whole
    return {
        "found": found,
        "name": Path(found.source).name,
        "sentences": summarize(found),
        "rows": [(each, _cells(each, longest)) for each in found.layers],
        "whole": [
            ("Weights alone", whole.weights_db),
            ("Activations alone", whole.activations_db),
            ("Both", whole.both_db),
            ("Both, least-error ranges", whole.least_error_db),
        ],
        "possible": [each for each in found.saturation if each.is_possible],
        "unknown": [each for each in found.saturation if not each.pairs and not _is_safe(each)],
    }


def _is_safe(finding: Saturation) -> bool:
    return finding.sums == 0


def _cells(layer: LayerResult, longest_ms: float) -> list[Cell]:
    """Return the cells of a layer, in the order of the columns."""
    return [
        _decibels("INT8", layer.both_db),
        _decibels("Weights", layer.weights_db),
        _decibels("Activ.", layer.activations_db),
        Cell("Float ms", _ms_text(layer.float_ms)),
        Cell("INT8 ms", _ms_text(layer.integer_ms)),
        _saving(layer.saved_ms, longest_ms),
        _saturating(layer.saturation),
    ]


def _decibels(label: str, value: float | None) -> Cell:
    if value is None:
        return Cell(label, DASH)
    share = (CALM_DB - value) / (CALM_DB - HOT_DB)
    return Cell(label, db_text(value), "harm", round(100 * min(max(share, 0.0), 1.0)))


def _saving(saved_ms: float | None, longest_ms: float) -> Cell:
    if saved_ms is None:
        return Cell("Saves ms", DASH)
    share = abs(saved_ms) / longest_ms if longest_ms else 0.0
    text = f"{saved_ms:+.3f}".replace("-", "\N{MINUS SIGN}")
    return Cell("Saves ms", text, "gain" if saved_ms > 0 else "loss", round(100 * share))


def _saturating(found: Saturation | None) -> Cell:
    text = saturation_text(found).replace(" of outputs", "")
    if found is None or not found.is_possible:
        return Cell("Saturates", DASH if found is None else text)
    return Cell("Saturates", text, "harm", round(100 * min(1.0, 2 * (found.outputs or 0.0))))


def _ms_text(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"
