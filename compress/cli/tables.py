"""How numbers look in tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aigc_compress.bench.statistics import RatioInterval
    from aigc_compress.budget import Judgement

__all__ = ["quality_cells", "size_text", "speed_text"]


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
