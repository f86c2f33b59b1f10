"""Move between the variants of a bundle by load, by a latency target and by users' feedback.

The most exact variant serves while it can. When the slowest of the last calls miss the target, the
next faster one takes over; when calls would stay well below the target on the slower one too, for
a while, that one comes back. Both thresholds and the waiting in between keep it from swinging.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.errors import UsageError

from .bundle import Arrays, Bundle
from .manifest import Variant
from .model import Model

__all__ = ["Adaptive", "Policy"]

MOVES_KEPT = 100
SMOOTHING = 0.1  # of a variant's own milliseconds, from call to call


@dataclass(frozen=True)
class Policy:
    """When to move.

    Attributes:
        target_ms: what 95 % of the calls must keep, waiting included.
        every: calls between two decisions.
        back_below: share of the target that the slower variant must be expected to keep.
        calm: decisions in a row that must speak for the slower variant.
        votes: feedback that is looked at.
        most_bad: share of bad votes above which a variant is left.
        banned_seconds: time for which it is then not used.
    """

    target_ms: float
    every: int = 50
    back_below: float = 0.5
    calm: int = 3
    votes: int = 20
    most_bad: float = 0.5
    banned_seconds: float = 600.0


@dataclass
class _Level:
    """A variant in use, and what is known of it."""

    variant: Variant
    model: Model
    own_ms: float | None = None
    calls: int = 0
    banned_until: float = 0.0
    votes: deque[bool] = field(default_factory=deque)


class Adaptive:
    """Runs a bundle by whichever of its variants fits the moment; thread-safe."""

    def __init__(
        self, bundle: Bundle, policy: Policy, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Load every variant that proves itself here.

        Args:
            bundle: a loaded one.
            policy: when to move.
            clock: seconds, for tests.

        Raises:
            UsageError: the target is not positive, or the variants' inputs or outputs differ.
        """
        if not policy.target_ms > 0:
            raise UsageError(f"The target is {policy.target_ms} ms; it must be above 0.")
        loaded = [(each, *bundle.load_variant(each)) for each in bundle.manifest.variants]
        self.checks = tuple(check for _, _, check in loaded)
        shapes = {(v.inputs, v.outputs) for v, model, _ in loaded if model is not None}
        if len(shapes) > 1:
            raise UsageError("The variants have different inputs or outputs: calls cannot move.")
        # The manifest lists the fastest first; here a higher index is faster.
        self._levels = [_Level(v, model) for v, model, _ in reversed(loaded) if model is not None]
        self._policy, self._clock = policy, clock
        self._lock = threading.Lock()
        self._at = self._calm = 0
        self._recent: deque[float] = deque(maxlen=policy.every)
        self._since = 0
        self._moves: deque[dict[str, Any]] = deque(maxlen=MOVES_KEPT)

    @property
    def variant(self) -> str:
        """Return the name of the variant in use."""
        return self._levels[self._at].variant.name

    def run(self, feeds: Mapping[str, NDArray[Any]], *, since: float | None = None) -> Arrays:
        """Return the outputs for one set of feeds.

        Args:
            feeds: by name.
            since: when the request came, by the clock; None: now.

        Raises:
            FeedError: the feeds do not fit.
        """
        level = self._levels[self._at]
        start = self._clock()
        outputs = level.model(**feeds)
        end = self._clock()
        with self._lock:
            self._note(
                level, 1000 * (end - start), 1000 * (end - (start if since is None else since))
            )
        return outputs

    def feedback(self, *, is_good: bool) -> None:
        """Take a user's word on what the variant in use made."""
        with self._lock:
            level, policy = self._levels[self._at], self._policy
            level.votes.append(is_good)
            while len(level.votes) > policy.votes:
                level.votes.popleft()
            bad = level.votes.count(False)
            if len(level.votes) == policy.votes and bad > policy.most_bad * policy.votes:
                told = f"{bad} of {policy.votes} users were not content"
                level.votes.clear()
                if self._at > 0:
                    level.banned_until = self._clock() + policy.banned_seconds
                    self._move(self._at - 1, told)

    def stats(self) -> dict[str, Any]:
        """Return the variant in use, the calls' 95th percentile, every variant, and all moves."""
        with self._lock:
            return {
                "variant": self.variant,
                "target_ms": self._policy.target_ms,
                "p95_ms": self._p95(),
                "variants": [
                    {"name": e.variant.name, "calls": e.calls, "own_ms": e.own_ms}
                    for e in self._levels
                ],
                "moves": [*self._moves],
                "checks": [vars(each) for each in self.checks],
            }

    def _note(self, level: _Level, own_ms: float, whole_ms: float) -> None:
        level.calls += 1
        known = own_ms if level.own_ms is None else level.own_ms
        level.own_ms = known + SMOOTHING * (own_ms - known)
        if level is not self._levels[self._at]:  # another call moved on meanwhile
            return
        self._recent.append(whole_ms)
        self._since += 1
        if self._since >= self._policy.every:
            self._since = 0
            self._decide()

    def _decide(self) -> None:
        p95 = self._p95()
        assert p95 is not None
        if p95 > self._policy.target_ms:
            self._calm = 0
            faster = self._next_allowed(self._at + 1)
            if faster is not None:
                told = f"95 % of the calls took up to {p95:.3g} ms, not {self._policy.target_ms:g}"
                self._move(faster, told)
            return
        expected = self._expected_ms(p95)
        self._calm = self._calm + 1 if expected <= self._goal() else 0
        if self._at > 0 and self._calm >= self._policy.calm:
            self._move(self._at - 1, f"{expected:.3g} ms are expected of the more exact variant")

    def _goal(self) -> float:
        return self._policy.back_below * self._policy.target_ms

    def _expected_ms(self, p95: float) -> float:
        """Return what calls would take on the next more exact variant: as many times longer."""
        if self._at == 0:
            return float("inf")
        slower, here = self._levels[self._at - 1], self._levels[self._at]
        if slower.own_ms is None or not here.own_ms:
            return p95
        return p95 * slower.own_ms / here.own_ms

    def _next_allowed(self, start: int) -> int | None:
        now = self._clock()
        levels = range(start, len(self._levels))
        return next((at for at in levels if self._levels[at].banned_until <= now), None)

    def _move(self, at: int, why: str) -> None:
        before = self.variant
        self._at, self._calm, self._since = at, 0, 0
        self._recent.clear()
        moved = {"at": self._clock(), "from": before, "to": self.variant, "why": why}
        self._moves.append(moved)

    def _p95(self) -> float | None:
        return float(np.percentile([*self._recent], 95)) if self._recent else None
