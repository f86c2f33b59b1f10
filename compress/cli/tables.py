"""How numbers look in tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aigc_compress.bench.statistics import RatioInterval
    from aigc_compress.budget import Judgement

__all__ = ["detail_lines", "quality_cells", "size_text", "speed_text"]


def size_text(size_bytes: int) -> str:
    """Return a size in MB or kB (powers of ten)."""
    if size_bytes >= 1_000_000:
        return f"{size_bytes / 1e6:.2f} MB"
    return f"{size_bytes / 1e3:.1f} kB"


def speed_text(speedup: RatioInterval) -> str:
    """Return ratio and interval."""
    return f"{speedup.ratio:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}]"


def quality_cells(judgement: Judgement | None) -> tuple[str, str]:
    """Return the value with its metric, and the drop with its budget."""
    if judgement is None:
        return "-", "-"
    quality = judgement.quality
    value = f"{quality.value:.3f}"
    if quality.spread is not None:
        value += f" ±{quality.spread:.3f}"
    value += f" {quality.metric}"
    word = "within" if judgement.within else "OUTSIDE"
    if judgement.baseline is None:
        return value, f"{word}, at least {judgement.allowed:.0f}"
    drop = quality.drop_from(judgement.baseline)
    return value, f"{word}: {drop:+.3f} of {judgement.allowed:.3f}"


def detail_lines(details: Mapping[str, Any]) -> list[str]:
    """Return one line per detail of a quality: `name: value [low, high] (what else is told)`."""
    return [f"{name}: {_detail_text(value)}" for name, value in details.items()]


def _detail_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return _measure_text(value) if "higher_is_better" in value else _pairs_text(value)
    if isinstance(value, list | tuple):
        return "; ".join(_detail_text(each) for each in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return {True: "yes", False: "no", None: "unknown"}.get(value, str(value))
    return _number_text(value)


def _pairs_text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_detail_text(value)}" for name, value in values.items())


def _measure_text(measure: Mapping[str, Any]) -> str:
    """Return a `MeasureDocument`, with whatever else stands in it behind."""
    text = _detail_text(measure["value"])
    if measure["low"] is not None and measure["high"] is not None:
        text += f" [{_number_text(measure['low'])}, {_number_text(measure['high'])}]"
    direction = "higher" if measure["higher_is_better"] else "lower"
    known = ("value", "higher_is_better", "low", "high", "samples")
    others = [f"; {k} {_detail_text(v)}" for k, v in measure.items() if k not in known]
    return f"{text} ({direction} is better, n {measure['samples']}{''.join(others)})"


def _number_text(value: float) -> str:
    if isinstance(value, int) or value == 0 or abs(value) >= 0.01:
        return str(value) if isinstance(value, int) else f"{value:.3f}"
    return f"{value:.1e}"
