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
        warmup_ms: time of calls before the first block, in milliseconds.
        seed: of the order of blocks.
    """

    threads: int = 1
    processes: int = 3
    blocks: int = 15
    block_ms: float = 30.0
    warmup_ms: float = 150.0
    seed: int = 0


@dataclass(frozen=True)
class Timing:
    """What one contestant took.

    Attributes:
        blocks_ms: median milliseconds per call of each block, float64 (processes, blocks).
        calls: timed calls in all.
        load_ms: session creation, median over processes.
        first_ms: first call, median over processes.
    """

    blocks_ms: NDArray[np.float64]
    calls: int
    load_ms: float
    first_ms: float
    threads: int = field(default=1)

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
    blocks: list[list[list[float]]] = [[] for _ in contestants]
    calls = [0] * len(contestants)
    opened: list[list[tuple[float, float]]] = [[] for _ in contestants]
    total = plan.processes * plan.blocks
    with tempfile.TemporaryDirectory() as folder:
        feed_file = Path(folder) / "feeds.npz"
        np.savez(feed_file, **dict(feeds))  # type: ignore[arg-type]
        for process in range(plan.processes):
            with ExitStack() as stack:
                workers = [
                    stack.enter_context(_worker(each, feed_file, plan)) for each in contestants
                ]
                for index, worker in enumerate(workers):
                    opened[index].append((worker.load_ms, worker.first_ms))
                    blocks[index].append([])
                sizes = [worker.warm_up(plan.warmup_ms, plan.block_ms) for worker in workers]
                for block in range(plan.blocks):
                    for index in rng.permutation(len(workers)):
                        spent = workers[index].run(sizes[index])
                        blocks[index][-1].append(float(np.median(spent)) / 1e6)
                        calls[index] += sizes[index]
                    if on_step:
                        on_step(process * plan.blocks + block + 1, total)
    return [
        Timing(
            np.array(blocks[index]),
            calls[index],
            float(np.median([load for load, _ in opened[index]])),
            float(np.median([first for _, first in opened[index]])),
            plan.threads,
        )
        for index in range(len(contestants))
    ]


class _Worker:
    """The parent's end of a worker process."""

    def __init__(self, process: subprocess.Popen[str], request: dict[str, Any]) -> None:
        self._process = process
        answer = self._ask(request)
        self.load_ms: float = answer["load_ms"]
        self.first_ms: float = answer["first_ms"]

    def run(self, calls: int) -> list[int]:
        """Return the nanoseconds of each of `calls` calls."""
        return list(self._ask({"calls": calls})["ns"])

    def warm_up(self, warmup_ms: float, block_ms: float) -> int:
        """Call for `warmup_ms`; return how many calls fill a block of `block_ms` (at least 3)."""
        spent, size = 0.0, 1
        while spent < warmup_ms * 1e6:
            times = self.run(size)
            spent += sum(times)
            size = max(1, min(1000, int(block_ms * 1e6 / np.median(times))))
        return max(3, size)

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
def _worker(contestant: Contestant, feed_file: Path, plan: LatencyPlan) -> Iterator[_Worker]:
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
