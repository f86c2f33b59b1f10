"""Time models against each other: fresh processes, blocks interleaved in random order."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.errors import AigcCompressError, NotOnThisMachineError, PassError, UsageError
from aigc_compress.task import Feeds, OnStep

__all__ = ["Contestant", "LatencyPlan", "Timing", "measure_latency"]

STEADY_SHARE = 0.03
WARMUP_LIMIT = 10  # times the least warm-up, then it goes on unsteady
MOST_CALLS = 1000


@dataclass(frozen=True)
class Contestant:
    """A file that takes part, and the engine that runs it."""

    path: Path
    engine: str = "ort"


@dataclass(frozen=True)
class LatencyPlan:
    """How latency is measured.

    Attributes:
        threads: intra-op threads of each engine; inter-op is 1.
        processes: fresh worker processes per contestant, one after the other.
        blocks: blocks of calls per process.
        block_ms: aimed length of a block, in milliseconds.
        warmup_ms: least time of calls before the first block, in milliseconds.
        gap_ms: idle time before each timed call, in milliseconds, as an edge app has it.
        seed: of the order of blocks.
    """

    threads: int = 1
    processes: int = 5
    blocks: int = 10
    block_ms: float = 30.0
    warmup_ms: float = 100.0
    gap_ms: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Timing:
    """What one contestant took.

    Attributes:
        blocks_ms: median milliseconds per call of each block, float64 (processes, blocks).
        calls_ms: milliseconds of every timed call, float64 (calls,).
        load_ms: session creation, median over processes.
        first_ms: first call, median over processes.
        warmup_calls: calls before the first block, median over processes.
        peak_bytes: peak resident memory of a worker, median over processes.
    """

    blocks_ms: NDArray[np.float64]
    calls_ms: NDArray[np.float64]
    load_ms: float
    first_ms: float
    warmup_calls: int
    peak_bytes: int

    @property
    def median_ms(self) -> float:
        """Return the median over all blocks, in milliseconds per call."""
        return float(np.median(self.blocks_ms))


def measure_latency(
    contestants: Sequence[Contestant],
    feeds: Feeds,
    plan: LatencyPlan,
    *,
    on_step: OnStep | None = None,
) -> list[Timing]:
    """Time every contestant on the same feeds, in rounds of one block each in random order.

    Raises:
        AigcCompressError: a worker could not load or run its model; its message is passed on.
    """
    rng = np.random.default_rng(plan.seed)
    records = [_Record() for _ in contestants]
    total = plan.processes * plan.blocks
    with tempfile.TemporaryDirectory() as folder:
        feed_file = Path(folder) / "feeds.npz"
        np.savez(feed_file, *feeds.values())  # by position: an input may be named `file`
        for process in range(plan.processes):
            with ExitStack() as stack:
                workers = [
                    stack.enter_context(_worker(each, feed_file, list(feeds), plan))
                    for each in contestants
                ]
                sizes = [worker.warm_up(plan.warmup_ms, plan.block_ms) for worker in workers]
                for record, worker in zip(records, workers, strict=True):
                    record.begin(worker)
                for block in range(plan.blocks):
                    for index in rng.permutation(len(workers)):
                        records[index].add(workers[index].run(sizes[index]))
                    if on_step:
                        on_step(process * plan.blocks + block + 1, total)
                for record, worker in zip(records, workers, strict=True):
                    record.peaks.append(worker.peak_bytes)
    return [record.timing() for record in records]


@dataclass
class _Record:
    """What was noted about one contestant so far."""

    blocks: list[list[float]] = field(default_factory=list)
    calls_ns: list[int] = field(default_factory=list)
    opened: list[tuple[float, float, int]] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def begin(self, worker: _Worker) -> None:
        """Note a new process."""
        self.blocks.append([])
        self.opened.append((worker.load_ms, worker.first_ms, worker.warmup_calls))

    def add(self, spent_ns: list[int]) -> None:
        """Note a block."""
        self.calls_ns += spent_ns
        self.blocks[-1].append(float(np.median(spent_ns)) / 1e6)

    def timing(self) -> Timing:
        """Return the summary."""
        load, first, warmup = np.median(np.array(self.opened, dtype=np.float64), axis=0)
        peak = int(np.median(self.peaks))
        blocks, calls = np.array(self.blocks), np.array(self.calls_ns) / 1e6
        return Timing(blocks, calls, float(load), float(first), int(warmup), peak)


class _Worker:
    """The parent's end of a worker process."""

    def __init__(self, process: subprocess.Popen[str], request: dict[str, Any]) -> None:
        self._process = process
        self._gap_ms: float = request.pop("gap_ms")
        self.warmup_calls = 0
        self.peak_bytes = 0
        answer = self._ask(request)
        self.load_ms: float = answer["load_ms"]
        self.first_ms: float = answer["first_ms"]

    def run(self, calls: int) -> list[int]:
        """Return the nanoseconds of each of `calls` calls."""
        answer = self._ask({"calls": calls, "gap_ms": self._gap_ms})
        self.peak_bytes = int(answer["peak_bytes"])
        return list(answer["ns"])

    def warm_up(self, warmup_ms: float, block_ms: float) -> int:
        """Call for `warmup_ms` and until steady; return how many calls fill a block (at least 3).

        Steady means that two batches of calls in a row differ by less than 3 % in their medians.
        """
        spent, size, before = 0.0, 1, float("inf")
        while True:
            times = self.run(size)
            spent += sum(times) / 1e6
            self.warmup_calls += size
            median = float(np.median(times)) / 1e6
            is_steady = abs(median - before) < STEADY_SHARE * median
            size, before = max(3, min(MOST_CALLS, int(block_ms / median))), median
            if (spent >= warmup_ms and is_steady) or spent >= WARMUP_LIMIT * warmup_ms:
                return size

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise PassError(f"A timing process died (exit code {code}) while running the model.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _as_error(answer["error"], answer["exit_code"])
        return answer


@contextmanager
def _worker(
    contestant: Contestant, feed_file: Path, inputs: list[str], plan: LatencyPlan
) -> Iterator[_Worker]:
    process = subprocess.Popen(
        [sys.executable, "-m", "aigc_compress.bench.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    request = {
        "path": str(contestant.path),
        "engine": contestant.engine,
        "threads": plan.threads,
        "feeds": str(feed_file),
        "inputs": inputs,
        "gap_ms": plan.gap_ms,
    }
    try:
        yield _Worker(process, request)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _as_error(message: str, exit_code: int) -> AigcCompressError:
    kinds = {2: UsageError, 3: NotOnThisMachineError}
    return kinds.get(exit_code, PassError)(message)
