"""The charts of a report: speed, latency, layers, and speed against quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from .document import Layer, Row
from .groups import Entry
from .layers import Slice, slices_of
from .svg import COLOURS, FONT_PX, NARROW, blank, draw_twice, shorten
from .wording import TIMES, call_text, interval_text, ms_text, number_text, ratio_text

__all__ = [
    "Spot",
    "draw_latency",
    "draw_layers",
    "draw_quality",
    "draw_speed",
    "times_ms",
]

RATIO_TICKS = (0.1, 0.2, 0.25, 0.33, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4, 5, 8, 10)
BINS = 100
PAIRED = 480  # pixels: two charts side by side
SHOWN_PERCENTILES = (0.5, 99.0)  # a few calls far out would squeeze all others


@dataclass(frozen=True)
class Spot:
    """One point of the chart of speed against quality; `number` stands in it and in its legend."""

    number: int
    latency_ms: float
    value: float
    is_baseline: bool
    is_within: bool
    is_on_front: bool


def draw_speed(entries: Sequence[Entry], *, name: str) -> Markup:
    """Draw the speed-up of each row with its interval; a baseline's is the A/A control."""
    rows = [(each, each.row.speedup) for each in entries if each.row.speedup]
    lows = [speedup.low for _, speedup in rows if speedup]
    highs = [speedup.high for _, speedup in rows if speedup]
    ends = (min(0.9, *lows) / 1.03, max(1.11, *highs) * 1.03)

    def draw(width: int) -> Figure:
        figure, axes = _lanes(width, len(rows), lane_px=44)
        axes.set_xscale("log")
        axes.set_xlim(*ends)
        _ratio_ticks(axes, ends, most=5 if width == NARROW else 9)
        axes.axvline(1, color=COLOURS["muted"], linewidth=1.2)
        for lane, (entry, speedup) in enumerate(rows):
            assert speedup is not None
            told = f"{ratio_text(speedup.ratio)} ({interval_text(speedup)})"
            label = f"{entry.title} A/A" if entry.is_control else entry.title
            _label(axes, lane, f"{label}{_where(entry.row)}", told, width)
            _interval(axes, lane, (speedup.low, speedup.ratio, speedup.high), entry)
        return figure

    return draw_twice(draw, name=name, told="Speed beside the baseline, with its interval")


def draw_latency(entries: Sequence[Entry], *, name: str) -> Markup:
    """Draw the distribution of calls, or of blocks, of each row on one axis of milliseconds."""
    samples = [(each, times_ms(each.row)) for each in entries]
    told = [(each, *found) for each, found in samples if found is not None]
    low, high = _shown_range([(times, is_calls) for _, times, is_calls in told])

    def draw(width: int) -> Figure:
        figure, axes = _lanes(width, len(told), lane_px=74)
        axes.set_xlim(low, high)
        _ms_ticks(axes, most=4 if width == NARROW else 9)
        for lane, (entry, times, is_calls) in enumerate(told):
            median = entry.row.latency_ms or float(np.median(times))
            p90 = float(np.percentile(times, 90))
            text = f"{ms_text(median)} ms" + (f", p90 {ms_text(p90)}" if is_calls else "")
            _label(axes, lane, f"{entry.title} · {entry.row.engine}", text, width)
            _distribution(axes, lane, times, entry, is_calls=is_calls)
            _mark(axes, lane, median, p90 if is_calls else None)
        return figure

    return draw_twice(draw, name=name, told="Distribution of latency in milliseconds")


def draw_layers(layers: Sequence[Layer], *, name: str) -> Markup:
    """Draw the layers that take longest, each with the least time that the machine allows."""
    slices = slices_of(layers)
    longest = max((each.ms for each in slices), default=0.0) or 1.0

    def draw(width: int) -> Figure:
        figure, axes = _lanes(width, len(slices), lane_px=36)
        axes.set_xlim(0, longest * 1.02)
        _ms_ticks(axes, most=4 if width == NARROW else 9)
        for lane, each in enumerate(slices):
            text = f"{number_text(each.ms)} ms, {each.share:.0%}"
            _label(axes, lane, each.label, text, width, font_px=FONT_PX - 1)
            _bar(axes, lane, each)
        return figure

    return draw_twice(draw, name=name, told="Milliseconds of each layer beside its limit")


def draw_quality(spots: Sequence[Spot], metric: str, *, higher: bool, name: str) -> Markup:
    """Draw quality over latency; a line joins what nothing else beats in both."""
    direction = "↑ higher is better" if higher else "↓ lower is better"

    def draw(width: int) -> Figure:
        height = 300 if width == NARROW else 330
        figure, axes = blank(width, height, left=52, right=14, top=34, bottom=44)
        _frame(axes, spots, is_narrow=width == NARROW)
        font: dict[str, Any] = {"color": COLOURS["muted"], "fontsize": FONT_PX - 1}
        figure.text(2 / width, 1 - 14 / height, direction, **font)
        figure.text(1 - 14 / width, 8 / height, "← faster, median ms", ha="right", **font)
        _front(axes, [each for each in spots if each.is_on_front])
        for spot in spots:
            _spot(axes, spot)
        return figure

    return draw_twice(draw, name=name, told=f"{metric} over milliseconds", wide=PAIRED)


def times_ms(row: Row) -> tuple[NDArray[np.float64], bool] | None:
    """Return milliseconds of all calls and True, or of all blocks and False; None without both."""
    calls = [call for process in row.calls_ns or () for block in process for call in block]
    if calls:
        return np.asarray(calls) / 1e6, True
    blocks = [block for process in row.blocks_ms or () for block in process]
    return (np.asarray(blocks), False) if blocks else None


def _where(row: Row) -> str:
    return f" · {row.engine}" + ("" if row.batch is None else f" · {call_text(row)}")


def _lanes(width: int, count: int, *, lane_px: int) -> tuple[Figure, Axes]:
    """Return axes with one lane per row, the first on top; lane i spans y from i to i + 1."""
    figure, axes = blank(width, max(1, count) * lane_px + 32, left=8, right=8, bottom=28)
    axes.set_ylim(max(1, count), 0)
    axes.set_yticks([])
    return figure, axes


def _label(
    axes: Axes, lane: int, text: str, told: str, width: int, *, font_px: float = FONT_PX
) -> None:
    """Write a lane's name on the left and its numbers on the right, above what is drawn."""
    room = width - 30 - 0.6 * font_px * len(told)
    across = axes.get_yaxis_transform()
    font: dict[str, Any] = {"fontsize": font_px, "va": "center", "transform": across}
    height = lane + (0.28 if font_px == FONT_PX else 0.26)
    axes.text(0, height, shorten(text, room), color=COLOURS["ink"], ha="left", **font)
    axes.text(1, height, told, color=COLOURS["muted"], ha="right", **font)


def _interval(axes: Axes, lane: int, ends: tuple[float, float, float], entry: Entry) -> None:
    low, ratio, high = ends
    colour = COLOURS[_tone(entry)]
    y = lane + 0.72
    axes.plot([low, high], [y, y], color=colour, linewidth=5, alpha=0.4, solid_capstyle="round")
    face = COLOURS["surface"] if entry.is_control else colour
    axes.plot([ratio], [y], "o", markersize=9, color=colour, markerfacecolor=face, mew=2)


def _tone(entry: Entry) -> str:
    speedup = entry.row.speedup
    if entry.is_control or speedup is None:
        return "baseline"
    return {"faster": "good", "slower": "bad"}.get(speedup.verdict, "muted")


def _ratio_ticks(axes: Axes, ends: tuple[float, float], *, most: int) -> None:
    low, high = ends
    ticks = [tick for tick in RATIO_TICKS if low <= tick <= high]
    if high / low > 30:
        first, last = int(np.ceil(np.log10(low))), int(np.floor(np.log10(high)))
        ticks = [10.0**power for power in range(first, last + 1)]
    while len(ticks) > most:
        ticks = [tick for i, tick in enumerate(ticks) if tick == 1 or i % 2 == ticks.index(1) % 2]
        if len(ticks) <= 2:
            break
    axes.minorticks_off()
    axes.set_xticks(ticks, [f"{tick:g}{TIMES}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", color=COLOURS["line"], linewidth=1)


def _ms_ticks(axes: Axes, *, most: int) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=most, prune="both"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ms"))
    axes.grid(axis="x", color=COLOURS["line"], linewidth=1)
    axes.set_axisbelow(True)


def _shown_range(samples: Sequence[tuple[NDArray[np.float64], bool]]) -> tuple[float, float]:
    """Return the ends of the axis: all blocks, but of single calls not the slowest ones."""
    ends = [
        np.percentile(times, SHOWN_PERCENTILES if is_calls else (0, 100))
        for times, is_calls in samples
    ]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    margin = 0.04 * (high - low) or 0.05 * high or 1.0
    return float(max(0.0, low - margin)), float(high + margin)


def _distribution(
    axes: Axes, lane: int, times: NDArray[np.float64], entry: Entry, *, is_calls: bool
) -> None:
    """Draw a histogram of calls, its highest bar as high as that of other rows; dots of blocks."""
    colour = COLOURS["baseline" if entry.row.is_baseline else "candidate"]
    floor = lane + 0.92
    if not is_calls:
        spread = floor - 0.06 - 0.3 * (np.arange(len(times)) % 7) / 6
        axes.plot(times, spread, "o", color=colour, alpha=0.55, markersize=5, mew=0)
        return
    counts, edges = np.histogram(times, bins=BINS, range=axes.get_xlim())
    heights = 0.5 * counts / max(1, counts.max())
    axes.stairs(floor - heights, edges, baseline=floor, fill=True, color=colour, alpha=0.45, lw=0)
    axes.stairs(floor - heights, edges, baseline=None, color=colour, linewidth=1.2)


def _mark(axes: Axes, lane: int, median: float, p90: float | None) -> None:
    low, high = axes.get_xlim()
    ends = [lane + 0.44, lane + 0.94]
    if low <= median <= high:
        axes.plot([median, median], ends, color=COLOURS["ink"], linewidth=2)
    if p90 is not None and low <= p90 <= high:
        axes.plot([p90, p90], [lane + 0.62, lane + 0.94], color=COLOURS["ink"], lw=1.4, ls=":")


def _bar(axes: Axes, lane: int, part: Slice) -> None:
    y = lane + 0.68
    axes.barh(y, part.ms, height=0.34, color=COLOURS[part.kind])
    if part.limit_ms:
        low, high = y - 0.27, y + 0.27
        axes.plot([part.limit_ms] * 2, [low, high], color=COLOURS["surface"], linewidth=5)
        axes.plot([part.limit_ms] * 2, [low, high], color=COLOURS["ink"], linewidth=2)


def _frame(axes: Axes, spots: Sequence[Spot], *, is_narrow: bool) -> None:
    count = 4 if is_narrow else 7
    for axis, values in (
        (axes.xaxis, [each.latency_ms for each in spots]),
        (axes.yaxis, [each.value for each in spots]),
    ):
        axis.set_major_locator(MaxNLocator(nbins=count))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        margin = 0.15 * (max(values) - min(values)) or 0.1 * abs(values[0]) or 1.0
        ends = (min(values) - margin, max(values) + margin)
        axes.set_xlim(*ends) if axis is axes.xaxis else axes.set_ylim(*ends)
    axes.grid(color=COLOURS["line"], linewidth=1)
    axes.set_axisbelow(True)


def _front(axes: Axes, spots: Sequence[Spot]) -> None:
    ordered = sorted(spots, key=lambda spot: spot.latency_ms)
    xs, ys = [each.latency_ms for each in ordered], [each.value for each in ordered]
    axes.step(xs, ys, where="post", color=COLOURS["good"], linewidth=2, alpha=0.7)


def _spot(axes: Axes, spot: Spot) -> None:
    """Draw a numbered disc: hollow for a baseline, red where the quality is outside the budget."""
    fill = COLOURS["candidate" if spot.is_within else "bad"]
    edge = COLOURS["baseline"] if spot.is_baseline else fill
    face = COLOURS["surface"] if spot.is_baseline else fill
    ink = COLOURS["ink"] if spot.is_baseline else COLOURS["surface"]
    at = (spot.latency_ms, spot.value)
    axes.plot(*at, "o", markersize=19, color=edge, markerfacecolor=face, mew=2, zorder=3)
    text: dict[str, Any] = {
        "ha": "center",
        "va": "center_baseline",
        "fontsize": FONT_PX - 1,
        "zorder": 4,
    }
    axes.text(*at, str(spot.number), color=ink, fontweight="bold", **text)
