"""What competes in the gate: the graph cleaned, lowered and quantized in several ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .artifact import Artifact
from .errors import AigcCompressError, StoppedError, first_line
from .gate import Candidate
from .passes import PASSES, Context, Mode, QuantizeConfig
from .passes.operators import RECURRENT, all_nodes, with_node_names
from .passes.quantize.static import ANCHORS
from .pipeline import run_passes
from .refine import measure_sensitivity, node_operators, splits, with_only
from .task import Feeds

__all__ = ["FOLDED", "Search", "make_candidates"]

FOLDED = "FP32, folded"
LOWERED = "lowered"
BEST_RANGES = "auto"


@dataclass(frozen=True)
class Search:
    """What is tried, and how long.

    Attributes:
        mode: auto tries static and dynamic quantization and both together; the others alone.
        has_vnni: whether the processor multiplies 8-bit numbers without saturating in 16 bits.
        targets_db: SQNR that splits between integers and floats aim at, rising.
        sensitivity_seconds: most time for measuring the harm of nodes, per graph.
    """

    mode: Mode = "auto"
    has_vnni: bool = True
    targets_db: tuple[float, ...] = (20.0,)
    sensitivity_seconds: float = 60.0


def make_candidates(
    baseline: Artifact, search: Search, context: Context, feeds: Feeds
) -> list[Candidate]:
    """Return all candidates; one that cannot be made says why in its place.

    Args:
        baseline: the FP32 graph.
        search: what is tried.
        context: feeds, meter, progress.
        feeds: of a timed call.
    """
    return [*_Maker(baseline, search, context, feeds).make()]


class _Maker:
    """Makes candidates one after the other; earlier ones are what later ones begin with."""

    def __init__(self, baseline: Artifact, search: Search, context: Context, feeds: Feeds) -> None:
        self._baseline, self._search = baseline, search
        self._context, self._feeds = context, feeds

    def make(self) -> Iterator[Candidate]:
        """Yield the folded graph, then what is made of it, then of its lowered forms."""
        # Some forms of a lowered ConvTranspose need Col2Im, which came with opset 18.
        is_transposed = _operators(self._baseline)["ConvTranspose"] > 0
        folded = self._passed(
            FOLDED, self._baseline, "fold", {"opset": 18} if is_transposed else {}
        )
        yield folded
        if folded.artifact is None:
            return
        ops = _operators(folded.artifact)
        bases = [("", folded.artifact)]
        if ops["ConvTranspose"]:
            yield self._passed("FP32, lowered", folded.artifact, "lower", {"precision": "float"})
            lowered = self._passed(LOWERED, folded.artifact, "lower", {"precision": "integer"})
            if lowered.artifact is not None:
                bases.append((f", {LOWERED}", lowered.artifact))
        for suffix, base in bases:
            yield from self._quantized(suffix, base, ops)

    def _quantized(self, suffix: str, base: Artifact, ops: Counter[str]) -> Iterator[Candidate]:
        for name, settings in self._schemes(ops, is_lowered=bool(suffix)):
            made = self._passed(f"INT8, {name}{suffix}", base, "quantize", settings)
            yield made
            is_static = settings["mode"] != "dynamic" and any(_operators(base)[a] for a in ANCHORS)
            if made.artifact is not None and is_static and self._context.meter is not None:
                yield from self._split(f"INT8, {name}{suffix}", base, made.artifact, settings)

    def _schemes(
        self, ops: Counter[str], *, is_lowered: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield names and settings of the quantize pass for a graph of these operators."""
        common = {"reduce_range": not self._search.has_vnni}
        is_dynamic = any(ops[op] for op in ("MatMul", *RECURRENT))
        is_static = is_lowered or any(ops[op] for op in ("Conv", "Gemm"))
        modes: list[Mode] = [self._search.mode]
        if self._search.mode == "auto" and is_dynamic and is_static:
            modes = ["auto", "dynamic"]
        for mode in modes:
            yield mode, {"mode": mode, **common}
            if mode != "dynamic" and is_static:
                yield f"{mode}, least-error ranges", {"mode": mode, "ranges": "auto", **common}
            if mode != "static" and any(ops[op] for op in RECURRENT):
                yield f"{mode}, per tensor", {"mode": mode, "per_channel": False, **common}

    def _split(
        self, name: str, base: Artifact, whole: Artifact, settings: Mapping[str, Any]
    ) -> Iterator[Candidate]:
        """Yield mixtures of integers and floats that should be faster, or do less harm."""
        assert self._context.meter is not None
        config = QuantizeConfig(**settings)
        graph = with_node_names(base.payload)
        harm = measure_sensitivity(
            graph, config, self._context, most_seconds=self._search.sensitivity_seconds
        )
        operators, borders = node_operators(graph, whole.payload, self._context.meter, self._feeds)
        outputs = [each.name for each in graph.graph.output]
        anchors = {node.name for node in graph.graph.node if node.op_type in ANCHORS}
        found = splits(operators, borders, outputs, harm, targets_db=self._search.targets_db)
        for target, split in found:
            kind = "fastest split" if target is None else f"split for {target:g} dB"
            if harm.skipped:
                kind += f" ({len(harm.skipped)} nodes not measured)"
            if anchors & split.integer:
                told = with_only(config, split.integer).model_dump()
                yield self._passed(f"{name}, {kind}", base, "quantize", told)

    def _passed(
        self, name: str, before: Artifact, pass_name: str, settings: Mapping[str, Any]
    ) -> Candidate:
        """Return what a pass makes, under this name, or why it makes nothing."""

        def run() -> Artifact:
            config = PASSES[pass_name].config.model_validate(dict(settings))
            return run_passes(before, [(pass_name, config)], self._context)

        return _attempt(name, run)


def _attempt(name: str, make: Callable[[], Artifact]) -> Candidate:
    try:
        return Candidate(name, make())
    except StoppedError:
        raise
    except AigcCompressError as error:
        return Candidate(name, failure=first_line(error))


def _operators(artifact: Artifact) -> Counter[str]:
    return Counter(node.op_type for node in all_nodes(artifact.payload.graph))
