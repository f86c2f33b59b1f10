"""What an analysis found out: plain values, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aigc_compress.passes.saturation import Saturation
from aigc_compress.schemes import Scheme

from .sites import Site

__all__ = ["Analysis", "Held", "LayerResult", "SchemeResult", "Whole"]


@dataclass(frozen=True)
class Whole:
    """SQNR of the outputs in dB with every layer on integers; None: not measured.

    Attributes:
        weights_db: weights alone rounded.
        activations_db: activations alone rounded; None too where an LSTM or GRU rounds inside.
        both_db: as the quantize pass makes it.
        least_error_db: the same with the range of least error for each activation.
    """

    weights_db: float | None = None
    activations_db: float | None = None
    both_db: float | None = None
    least_error_db: float | None = None


@dataclass(frozen=True)
class LayerResult:
    """What one layer costs and saves.

    Attributes:
        site: the layer.
        both_db: SQNR of the outputs with this layer alone on integers; None: not measured.
        weights_db: with its weights alone rounded; None too where it has none.
        activations_db: with its activations alone rounded.
        without_db: with every layer but this one on integers; for the worst few.
        float_ms: on floats, by ONNX Runtime's profiler; 0 where it is fused into a neighbour.
        integer_ms: on integers, borders to floats not counted.
        saturation: what 8-bit weights do on x86 without VNNI.
        note: why something is missing.
    """

    site: Site
    both_db: float | None = None
    weights_db: float | None = None
    activations_db: float | None = None
    without_db: float | None = None
    float_ms: float | None = None
    integer_ms: float | None = None
    saturation: Saturation | None = None
    note: str = ""

    @property
    def saved_ms(self) -> float | None:
        """Milliseconds that integers save; below zero where they cost time."""
        if self.float_ms is None or self.integer_ms is None:
            return None
        return self.float_ms - self.integer_ms

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "name": self.site.name,
            "operator": self.site.operator,
            "form": self.site.form,
            "alone_db": {
                "both": self.both_db,
                "weights": self.weights_db,
                "activations": self.activations_db,
            },
            "without_db": self.without_db,
            "float_ms": self.float_ms,
            "int8_ms": self.integer_ms,
            "saved_ms": self.saved_ms,
            "saturation": None if self.saturation is None else asdict(self.saturation),
            "note": self.note,
        }


@dataclass(frozen=True)
class Held:
    """SQNR in dB of everything on integers but these layers."""

    names: tuple[str, ...]
    db: float | None


@dataclass(frozen=True)
class SchemeResult:
    """A scheme of the table, the SQNR that it gives this model, and whether it is this machine's.

    The SQNR is that of the scheme's rounding, computed here: it tells nothing of other kernels.
    """

    scheme: Scheme
    db: float | None
    is_here: bool

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**asdict(self.scheme), "db": self.db, "is_here": self.is_here}


@dataclass(frozen=True)
class Analysis:
    """Everything found out about one model.

    Attributes:
        source: as it was named.
        layers: in graph order.
        whole: all layers at once.
        held: everything but the worst one, two, three layers.
        schemes: for this machine and others.
        saturation: findings of the graph with 8-bit weights, the worst first; where the model came
            quantized, those of the graph as it came.
        stays_float: why costly operators stay on floats, by type, each reason with its count.
        feeds: sets of feeds that noise and sums were measured on.
        skipped: layers for which there was no time.
        notes: what the user should know.
        is_quantized: whether the model came quantized, so that layers were not measured.
        threads: intra-op threads of the times.
        seed: of everything random.
    """

    source: str
    layers: tuple[LayerResult, ...] = ()
    whole: Whole = Whole()
    held: tuple[Held, ...] = ()
    schemes: tuple[SchemeResult, ...] = ()
    saturation: tuple[Saturation, ...] = ()
    stays_float: Mapping[str, Mapping[str, int]] | None = None
    feeds: int = 0
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    is_quantized: bool = False
    threads: int = 1
    seed: int = 0

    @property
    def worst(self) -> tuple[LayerResult, ...]:
        """Return the layers that were measured, the most harmful first."""
        known = [each for each in self.layers if each.both_db is not None]
        return tuple(sorted(known, key=lambda each: each.both_db or 0.0))

    def document(self) -> dict[str, Any]:
        """Return it as one JSON document."""
        from .words import summarize

        return {
            "schema": "aigc-compress/analyze/1",
            "model": self.source,
            "summary": list(summarize(self)),
            "is_quantized": self.is_quantized,
            "metric": "SQNR of the worst output against FP32, dB",
            "feeds": self.feeds,
            "whole_db": asdict(self.whole),
            "layers": [each.document() for each in self.layers],
            "without": [{"layers": list(each.names), "db": each.db} for each in self.held],
            "schemes": [each.document() for each in self.schemes],
            "saturation": [asdict(each) for each in self.saturation],
            "stays_float": {op: dict(why) for op, why in (self.stays_float or {}).items()},
            "skipped": list(self.skipped),
            "notes": list(self.notes),
            "threads": self.threads,
            "seed": self.seed,
        }
