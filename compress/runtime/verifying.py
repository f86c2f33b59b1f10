"""Prove a bundle where it will run: every byte, every variant, and how long a call takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bundle import Arrays, Check, examine, golden_sets, open_bundle
from .manifest import Manifest
from .model import Model

__all__ = ["Timing", "Verification", "verify"]

CALLS, WARMUP, LEAST_SECONDS = 50, 10, 0.5


@dataclass(frozen=True)
class Timing:
    """How long a call takes here and took where the bundle was made, in milliseconds.

    Attributes:
        median_ms: of calls on the first golden set, one thread unless others were asked for.
        p90_ms: nine of ten calls took less.
        recorded_ms: None: nobody measured it.
    """

    median_ms: float
    p90_ms: float
    recorded_ms: float | None

    @property
    def ratio(self) -> float | None:
        """Return how many times the recorded time a call takes here."""
        return self.median_ms / self.recorded_ms if self.recorded_ms else None


@dataclass(frozen=True)
class Verification:
    """What was found; damage and forgery raise instead.

    Attributes:
        manifest: what the bundle says.
        signed_by: public key in hex; None: it is not signed.
        checks: of all variants, in their order.
        variant: the one that the runtime takes here; None: nothing runs rightly.
        timings: by variant, of those that may be used; empty unless asked for.
    """

    manifest: Manifest
    signed_by: str | None
    checks: tuple[Check, ...]
    variant: str | None
    timings: dict[str, Timing]

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document."""
        return {
            "schema": "aigc-compress/verify/1",
            "name": self.manifest.name,
            "signed_by": self.signed_by,
            "variant": self.variant,
            "checks": [vars(each) for each in self.checks],
            "timings": {k: {**vars(v), "ratio": v.ratio} for k, v in self.timings.items()},
        }


def verify(
    path: str | Path,
    *,
    key: bytes | None = None,
    is_timed: bool = False,
    threads: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Verification:
    """Check every member's digest, the signature, and every variant's golden outputs.

    Args:
        path: the bundle.
        key: the public key that it must be signed with; None: any, or none.
        is_timed: whether to time the variants that may be used.
        threads: intra-op threads.
        clock: seconds, for tests.

    Raises:
        InputFileError: the file is missing, damaged, hostile, or not signed by that key.
        NotOnThisMachineError: it is signed, and cryptography is not installed.
    """
    archive, manifest = open_bundle(path)
    archive.check()
    signed_by = archive.check_signature(key) if archive.is_signed or key is not None else None
    checks: list[Check] = []
    timings: dict[str, Timing] = {}
    for variant in manifest.variants:
        model, check = examine(archive, manifest, variant, threads=threads)
        checks.append(check)
        if model is not None and is_timed:
            feeds, _ = next(golden_sets(archive, manifest, variant))
            timings[variant.name] = _timed(model, feeds, variant.latency_ms, clock)
    used = next((each.variant for each in checks if not each.reason), None)
    return Verification(manifest, signed_by, tuple(checks), used, timings)


def _timed(
    model: Model, feeds: Arrays, recorded_ms: float | None, clock: Callable[[], float]
) -> Timing:
    for _ in range(WARMUP):
        model(**feeds)
    taken: list[float] = []
    begin = clock()
    while len(taken) < CALLS or clock() - begin < LEAST_SECONDS:
        start = clock()
        model(**feeds)
        taken.append(1000 * (clock() - start))
    p90 = statistics.quantiles(taken, n=10)[-1]
    return Timing(statistics.median(taken), p90, recorded_ms)
