"""What an analysis says, in a few plain sentences."""

from __future__ import annotations

from collections.abc import Iterator

from aigc_compress.passes.saturation import Saturation

from .result import Analysis

__all__ = ["saturation_text", "summarize"]

ABOUT_EQUAL_DB = 3.0
STANDS_OUT_DB = 1.0


def summarize(found: Analysis) -> tuple[str, ...]:
    """Return sentences: what does the harm, which layer, how much time, which CPUs differ."""
    if found.is_quantized:
        return tuple(_saturation(found))
    if not found.layers:
        return ("Nothing to quantize.",)
    return tuple([*_harm(found), *_worst(found), *_time(found), *_saturation(found)])


def saturation_text(found: Saturation | None) -> str:
    """Return the finding as a cell: share of outputs hit, or that it may happen, or none."""
    if found is None:
        return "-"
    if not found.is_possible:
        return "no" if found.pairs or found.sums is not None else "unknown"
    if found.outputs is None:
        return f"may: {found.can_saturate:.1%} of pairs"
    if found.outputs == 0:
        return "may, not seen"
    return f"{found.outputs:.1%} of outputs"


def _harm(found: Analysis) -> Iterator[str]:
    whole = found.whole
    if whole.weights_db is None or whole.activations_db is None:
        if whole.weights_db is not None:
            yield f"Weights alone give {_db(whole.weights_db)}."
        if whole.both_db is not None:
            yield f"All layers on integers give {_db(whole.both_db)}."
    else:
        yield _culprit(whole.weights_db, whole.activations_db)
        if whole.both_db is not None:
            yield f"Together they give {_db(whole.both_db)}."
    if whole.both_db is not None and whole.least_error_db is not None:
        gain = whole.least_error_db - whole.both_db
        if gain > STANDS_OUT_DB:
            yield f"Ranges of least error would give {_db(whole.least_error_db)}."


def _culprit(weights_db: float, activations_db: float) -> str:
    weights, activations = _db(weights_db), _db(activations_db)
    if abs(weights_db - activations_db) < ABOUT_EQUAL_DB:
        return f"Weights and activations do about equal harm: {weights} and {activations} alone."
    if activations_db < weights_db:
        return f"Activations do the harm: {activations} alone, against {weights} for weights."
    return f"Weights do the harm: {weights} alone, against {activations} for activations."


def _worst(found: Analysis) -> Iterator[str]:
    known = [each for each in found.held if each.db is not None]
    alone = [each for each in known if len(each.names) == 1]
    if not alone or found.whole.both_db is None or len(found.layers) == 1:
        return
    best = max(alone, key=lambda each: each.db or 0.0)
    if (best.db or 0.0) - found.whole.both_db > STANDS_OUT_DB:
        yield f"Without {best.names[0]} the rest would reach {_db(best.db)}."
    else:
        yield f"No layer stands out: without {best.names[0]} the rest would reach {_db(best.db)}."
    most = max(known, key=lambda each: len(each.names))
    if len(most.names) > 1 and (most.db or 0.0) - (best.db or 0.0) > STANDS_OUT_DB:
        yield f"Without the worst {len(most.names)} it would reach {_db(most.db)}."


def _time(found: Analysis) -> Iterator[str]:
    timed = [each for each in found.layers if each.saved_ms is not None]
    if not timed:
        return
    floats = sum(each.float_ms or 0.0 for each in timed)
    integers = sum(each.integer_ms or 0.0 for each in timed)
    yield (
        f"These layers take {_ms(floats)} ms on floats and {_ms(integers)} ms on integers,"
        " borders not counted."
    )


def _saturation(found: Analysis) -> Iterator[str]:
    if not found.saturation:
        if found.is_quantized:
            yield "No product of uint8 activations and int8 weights was found."
        return
    possible = list({each.name: each for each in found.saturation if each.is_possible}.values())
    weights = "these" if found.is_quantized else "8-bit"
    if not possible:
        yield f"No layer would saturate on x86 without VNNI with {weights} weights."
        return
    seen = list({each.name: each for each in found.saturation if each.outputs}.values())
    count = f"{len(possible)} of {len({each.name for each in found.saturation})} layers"
    text = f"On x86 without VNNI {count} can saturate with {weights} weights"
    if seen:
        text += f"; on these feeds {len(seen)} did, most in {seen[0].name}"
        text += f" ({saturation_text(seen[0])})"
    yield f"{text}. 7-bit weights prevent it{_price(found)}."


def _price(found: Analysis) -> str:
    """Return what 7 bits cost this model."""
    by_bits = {
        each.scheme.weight_bits: each.db
        for each in found.schemes
        if each.scheme.activations == "uint8"
    }
    full, reduced = by_bits.get(8), by_bits.get(7)
    if full is None or reduced is None:
        return ""
    return f": {_db(reduced)} instead of {_db(full)}"


def _db(value: float | None) -> str:
    return "an unknown SQNR" if value is None else f"{value:.1f} dB"


def _ms(value: float) -> str:
    return f"{value:.3g}"
