"""Read a bench document back, so that every number can be derived again from its raw times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from aigc_compress.bench.latency import LatencyPlan
from aigc_compress.bench.profile import Layer
from aigc_compress.bench.roofline import Peaks, limit_of
from aigc_compress.bench.statistics import paired_speedup
from aigc_compress.bench.timing import Timing
from aigc_compress.bench.trust import Trust

from .bench_result import SCHEMA, BenchOptions, BenchResult, FileFacts, Row
from .budget import Judgement
from .errors import InputFileError, first_line
from .storage import read_json
from .task import Exhibit, Quality

__all__ = ["read_result", "replay"]


def replay(path: Path) -> BenchResult:
    """Return the result of an earlier `bench`, its ratios, intervals and limits computed anew.

    Raises:
        InputFileError: the file is missing, no bench document, or has no raw times.
    """
    document = read_json(path, SCHEMA, "aigc-compress bench -o")
    try:
        return read_result(document)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise InputFileError(f"{path} is damaged or of another version: {told}") from error


def read_result(document: Mapping[str, Any]) -> BenchResult:
    """Return the result behind a document; any of Python's own errors where it is damaged."""
    known = {each.name for each in fields(LatencyPlan)}
    settings = {name: value for name, value in document["settings"].items() if name in known}
    plan = LatencyPlan(**{**settings, "cores": tuple(settings["cores"])})
    peaks = _peaks(document["peaks"])
    rows: list[Row] = []
    baseline: Timing | None = None
    for raw in document["rows"]:
        timing = _timing(raw, plan)
        baseline = timing if raw["is_baseline"] else baseline
        if baseline is None:
            raise ValueError("the first row must be a baseline")
        rows.append(_row(raw, timing, baseline, plan, peaks))
    return BenchResult(
        tuple(rows),
        BenchOptions(plan=plan, seed=plan.seed),
        tuple(document["notes"]),
        Trust(**document["trust"]),
        document["machine"],
        peaks,
        tuple(document["feeds_sha256"]),
    )


def _row(
    raw: Mapping[str, Any], timing: Timing, baseline: Timing, plan: LatencyPlan, peaks: Peaks | None
) -> Row:
    control = _timing(raw["control"], plan) if raw["control"] else None
    against = control if raw["is_baseline"] and control else timing
    speedup = paired_speedup(
        baseline.blocks_ms,
        against.blocks_ms,
        seed=plan.seed,
        confidence=plan.stopping.confidence(raw["ended"]),
    )
    cost = raw["cost"]
    return Row(
        raw["model"],
        raw["engine"],
        raw["batch"],
        raw["length"],
        raw["is_baseline"],
        FileFacts(raw["size_bytes"], raw["compressed_bytes"], raw["sha256"]),
        timing,
        speedup,
        _judgement(raw["quality"]) if raw["quality"] else None,
        cost,
        limit_of(cost, peaks, threads=plan.threads) if cost and peaks else None,
        control,
        raw["ended"],
        raw["operators"],
        tuple(Layer(**each) for each in raw["layers"]) if raw["layers"] else None,
    )


def _timing(raw: Mapping[str, Any], plan: LatencyPlan) -> Timing:
    return Timing.from_raw(raw["calls_ns"], raw["processes"], is_throughput=plan.callers > 1)


def _peaks(raw: Mapping[str, Any] | None) -> Peaks | None:
    if raw is None:
        return None
    bandwidths = tuple((int(size), float(rate)) for size, rate in raw["bandwidths"])
    return Peaks(raw["float_macs"], raw["integer_macs"], bandwidths)


def _judgement(raw: Mapping[str, Any]) -> Judgement:
    def quality(value: float, spread: float | None, details: Mapping[str, Any]) -> Quality:
        about = raw["metric"], value, raw["higher_is_better"], raw["samples"], raw["split"]
        return Quality(*about, spread, details)

    measured = quality(raw["value"], raw["spread"], raw["details"])
    before = None if raw["baseline"] is None else quality(raw["baseline"], None, {})
    shown = Exhibit(**raw["exhibit"]) if raw["exhibit"] else None
    return Judgement(measured, before, raw["budget"], raw["within"], shown)
