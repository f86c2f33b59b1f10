"""Draw a chart so that it reads well in a light and a dark page, on a phone and on a desk.

Matplotlib knows neither CSS variables nor media queries. So colours are drawn as place holders
that become variables of the page, texts stay texts in the page's own font, and each chart is drawn
twice: the page shows the narrow or the wide one.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "FONT_PX",
    "NARROW",
    "WIDE",
    "blank",
    "draw_twice",
    "shorten",
]

NARROW, WIDE = 340, 1000  # pixels
FONT_PX = 12.0
COLOURS = {
    "ink": "#010203",
    "muted": "#010204",
    "line": "#010205",
    "surface": "#010206",
    "baseline": "#010207",
    "candidate": "#010208",
    "integer": "#010209",
    "float": "#01020a",
    "border": "#01020b",
    "other": "#01020c",
    "good": "#01020d",
    "bad": "#01020e",
}
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names come from a file: "$" is a character like others
    "font.size": FONT_PX,
    "font.family": "DejaVu Sans",
    "path.simplify": True,
}
USED_ID = re.compile(r'(?:url\(#|href="#)([^)"]+)')
AN_ID = re.compile(r' id="([^"]*)"')
METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
SIZE = re.compile(r'<svg [^>]*viewBox="([^"]*)"[^>]*>')
FONT = re.compile(r"font: (?:(bold|\d+) )?([\d.]+)px [^;\"]*")


def draw_twice(draw: Callable[[int], Figure], *, name: str, told: str, wide: int = WIDE) -> Markup:
    """Return the narrow and the wide form of a chart as inline SVG.

    Args:
        draw: takes the width in pixels.
        name: unique on the page; it keeps the ids of charts apart.
        told: what the chart shows, for those who cannot see it.
        wide: width of the wide form.
    """
    forms = (("narrow", NARROW), ("wide", wide))
    drawn = (_inline(draw, width, f"{name}-{form}", form, told) for form, width in forms)
    return Markup("".join(drawn))  # matplotlib escaped all texts in it


def blank(
    width: int, height: int, *, left: int = 2, right: int = 2, top: int = 2, bottom: int = 24
) -> tuple[Figure, Axes]:
    """Return a figure of a size in pixels and its only axes, margins in pixels, no frame."""
    figure = Figure(figsize=(width / 72, height / 72))
    box = (
        left / width,
        bottom / height,
        (width - left - right) / width,
        (height - bottom - top) / height,
    )
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(colors=COLOURS["muted"], length=0, labelsize=FONT_PX - 1, pad=6)
    return figure, axes


def shorten(text: str, room_px: float, *, font_px: float = FONT_PX) -> str:
    """Cut the middle out of a text that would not fit, at a mean character's width."""
    most = max(8, int(room_px / (0.56 * font_px)))
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return f"{text[:head]}…{text[-(most - 1 - head) :]}"


def _inline(draw: Callable[[int], Figure], width: int, salt: str, form: str, told: str) -> str:
    drawn = io.StringIO()
    settings: dict[Any, Any] = {**SETTINGS, "svg.hashsalt": salt}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page's font is another one
        figure = draw(width)
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=metadata)
    return _adapt(drawn.getvalue(), form, told)


def _adapt(text: str, form: str, told: str) -> str:
    """Keep the <svg> element alone, with the page's colours and font and no ids but used ones."""
    text = METADATA.sub("", text[text.index("<svg") :])
    used = set(USED_ID.findall(text))
    text = AN_ID.sub(lambda found: found[0] if found[1] in used else "", text)
    text = text.replace("xlink:href", "href")
    label = html.escape(told, quote=True)
    opened = rf'<svg class="chart {form}" viewBox="\1" role="img" aria-label="@LABEL@">'
    text = SIZE.sub(opened, text, count=1).replace("@LABEL@", label, 1)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return FONT.sub(lambda found: f"font-size: {found[2]}px; font-weight: {found[1] or 400}", text)
