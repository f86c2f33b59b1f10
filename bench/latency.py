"""Time models against each other: fresh processes, blocks interleaved in random order."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from aigc_compress.errors import UsageError
from aigc_compress.task import Feeds, OnStep

from .client import start_worker
from .statistics import RatioInterval, paired_speedup
from .stopping import LEAST_PROCESSES, Reason, Stopping
from .timing import ProcessRecord, Timing

__all__ = [
    "Clock",
    "Contest",
    "Contestant",
    "LatencyPlan",
    "Timing",
    "measure_latency",
    "run_contest",
]

LEAST_BLOCKS = 2
Clock = Literal["wall", "device"]


@dataclass(frozen=True)
class Contestant:
    """A file that takes part, and the engine that runs it.

    The first contestant is the baseline. One that `decides` keeps the measurement going until it
    has a verdict; an A/A control does not. Feeds of its own are for one whose inputs have other
    sizes, such as a narrower state; None: those of all.
    """

    path: Path
    engine: str = "ort"
    decides: bool = True
    feeds: Feeds | None = None


@dataclass(frozen=True)
class LatencyPlan:
    """How latency is measured.

    Attributes:
        threads: intra-op threads of each engine; inter-op is 1.
        processes: fresh worker processes per contestant, one after the other, at most.
        blocks: blocks of calls per process.
        block_ms: aimed length of a block, in milliseconds.
        warmup_ms: least time of calls before the first block, in milliseconds.
        gap_ms: idle time before each timed call, in milliseconds, as an edge app has it.
        callers: threads that call one session at once; with more than one, throughput is measured:
            a block counts as its wall time over its calls.
        max_seconds: time after which no further process starts and no process gets more than two
            blocks; three processes run in any case. None: no limit.
        stops_early: whether it ends once every verdict is clear (see `stopping`).
        precision: half width of the intervals, as a share of the ratio, that ending early needs;
            None: the verdicts alone are enough.
        cores: CPU cores that workers are bound to where the system allows; none: not bound.
        clock: `wall`: a call counts from numpy arrays to numpy arrays, as an app sees it; `device`:
            by the device's own clock, tensors being there already (see `HasDeviceClock`).
        seed: of the order of blocks, and of statistics.
    """

    threads: int = 1
    processes: int = 8
    blocks: int = 8
    block_ms: float = 30.0
    warmup_ms: float = 100.0
    gap_ms: float = 0.0
    callers: int = 1
    max_seconds: float | None = None
    stops_early: bool = True
    precision: float | None = 0.1
    cores: tuple[int, ...] = ()
    clock: Clock = "wall"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clock == "device" and (self.callers > 1 or self.gap_ms):
            raise UsageError("The device's clock knows neither callers nor gaps: --clock wall.")
        if self.callers > 1 and self.gap_ms:
            raise UsageError("Throughput (several callers) has no gaps: drop one of the two.")

    @property
    def stopping(self) -> Stopping:
        """Return when it may end, which also sets the confidence of its intervals."""
        if not self.stops_early:
            return Stopping(LEAST_PROCESSES)
        return Stopping(self.processes, self.precision)


@dataclass(frozen=True)
class Contest:
    """What a measurement gave.

    Attributes:
        timings: of every contestant, in order.
        reason: why it ended.
        confidence: of its intervals.
        seed: of the statistics.
    """

    timings: tuple[Timing, ...]
    reason: Reason
    confidence: float
    seed: int = 0

    def speedup(self, index: int) -> RatioInterval:
        """Return how many times faster a contestant is than the first one."""
        baseline, candidate = self.timings[0], self.timings[index]
        return paired_speedup(
            baseline.blocks_ms, candidate.blocks_ms, seed=self.seed, confidence=self.confidence
        )


def measure_latency(
    contestants: Sequence[Contestant],
    feeds: Feeds,
    plan: LatencyPlan,
    *,
    on_step: OnStep | None = None,
) -> list[Timing]:
    """Time every contestant as `run_contest` does, and return the timings alone."""
    return list(run_contest(contestants, feeds, plan, on_step=on_step).timings)


def run_contest(
    contestants: Sequence[Contestant],
    feeds: Feeds,
    plan: LatencyPlan,
    *,
    on_step: OnStep | None = None,
) -> Contest:
    """Time every contestant on the same feeds, in rounds of one block each in random order.

    Raises:
        AigcCompressError: a worker could not load or run its model; its message is passed on.
    """
    records: list[list[ProcessRecord]] = [[] for _ in contestants]
    clock = _Clock(plan)
    reason: Reason = "all processes"
    with tempfile.TemporaryDirectory() as folder:
        files = [
            _write_feeds(Path(folder) / f"{index}.npz", feeds if each.feeds is None else each.feeds)
            for index, each in enumerate(contestants)
        ]
        for process in range(plan.processes):
            found = _run_round(contestants, files, plan, clock, process)
            for record, new in zip(records, found, strict=True):
                record.append(new)
            if on_step:
                on_step(process + 1, plan.processes)
            if process + 1 == plan.processes:
                break
            if plan.stops_early and _is_clear(contestants, records, plan):
                reason = "verdict clear"
                break
            if clock.is_over(process + 1):
                reason = "out of time"
                break
    if on_step and reason != "all processes":
        on_step(plan.processes, plan.processes)
    timings = tuple(Timing(tuple(each), plan.callers > 1) for each in records)
    return Contest(timings, reason, plan.stopping.confidence(reason), plan.seed)


def _write_feeds(path: Path, feeds: Feeds) -> tuple[Path, list[str]]:
    np.savez(path, *feeds.values())  # by position: an input may be named `file`
    return path, list(feeds)


def _is_clear(
    contestants: Sequence[Contestant],
    records: Sequence[Sequence[ProcessRecord]],
    plan: LatencyPlan,
) -> bool:
    timings = [Timing(tuple(each), plan.callers > 1) for each in records]
    deciding = [
        timing.blocks_ms
        for contestant, timing in zip(contestants[1:], timings[1:], strict=True)
        if contestant.decides
    ]
    return plan.stopping.is_clear(timings[0].blocks_ms, deciding, seed=plan.seed)


def _run_round(
    contestants: Sequence[Contestant],
    feeds: Sequence[tuple[Path, list[str]]],
    plan: LatencyPlan,
    clock: _Clock,
    process: int,
) -> list[ProcessRecord]:
    """Give every contestant a fresh process and its blocks; libraries load side by side."""
    rng = np.random.default_rng([plan.seed, process])
    with ExitStack() as stack:
        workers = [stack.enter_context(start_worker(each.engine)) for each in contestants]
        for contestant, worker, own in zip(contestants, workers, feeds, strict=True):
            worker.open(contestant, own, plan)
        for worker in workers:
            worker.warm_up()
        for block in range(plan.blocks):
            for index in rng.permutation(len(workers)):
                workers[index].time_block()
            if clock.cuts_blocks(process, block + 1):
                break
        return [worker.record for worker in workers]


class _Clock:
    """The time that is left of a plan's `max_seconds`."""

    def __init__(self, plan: LatencyPlan) -> None:
        self._limit = float("inf") if plan.max_seconds is None else plan.max_seconds
        self._start = time.monotonic()

    def is_over(self, processes: int) -> bool:
        """Whether a further process, as long as the mean one so far, would end too late."""
        spent = time.monotonic() - self._start
        return processes >= LEAST_PROCESSES and spent * (1 + 1 / processes) > self._limit

    def cuts_blocks(self, process: int, blocks: int) -> bool:
        """Whether a process ends here: its share of the time (a third at least) is used up."""
        share = self._limit * min(1.0, (process + 1) / LEAST_PROCESSES)
        return blocks >= LEAST_BLOCKS and time.monotonic() - self._start > share
