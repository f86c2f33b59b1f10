"""The parent's end of a worker process (see `worker`)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from aigc_compress.errors import AigcCompressError, NotOnThisMachineError, PassError, UsageError

from .timing import Block, ProcessRecord

if TYPE_CHECKING:
    from .latency import Contestant, LatencyPlan

__all__ = ["Channel", "Worker", "start_worker"]

STEADY_SHARE = 0.03
WARMUP_LIMIT = 10  # times the least warm-up, then it goes on unsteady
MOST_CALLS = 1000
LEAST_CALLS = 3
SLOW_MS = 1000.0  # a block of a model as slow as this is a single call


class Channel(Protocol):
    """Whatever answers requests: a process, or a fake with a clock of its own."""

    def ask(self, request: dict[str, Any] | None) -> dict[str, Any]:
        """Send a request, None for none, and return the answer; raises the worker's error."""
        ...


class Worker:
    """A worker that opens one model, warms it up and times blocks of calls."""

    record: ProcessRecord

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._calls = 1

    def open(
        self, contestant: Contestant, feeds: tuple[Path, list[str]], plan: LatencyPlan
    ) -> None:
        """Load the contestant and make its first call; raises AigcCompressError."""
        self._plan = plan
        self._channel.ask(None)
        feed_file, inputs = feeds
        request = {
            "path": str(contestant.path),
            "engine": contestant.engine,
            "threads": plan.threads,
            "feeds": str(feed_file),
            "inputs": inputs,
            "cores": list(plan.cores),
            "clock": plan.clock,
        }
        told = self._channel.ask(request)
        cores, remarks = tuple(told["cores"]), tuple(told["remarks"])
        self.record = ProcessRecord(
            told["load_ms"], told["first_ms"], 0, cores=cores, remarks=remarks
        )

    def warm_up(self) -> None:
        """Call for the plan's `warmup_ms` and until steady, and size the blocks.

        Steady means that two batches of calls in a row differ by less than 3 % in their medians.
        """
        least, spent, before = self._plan.warmup_ms, 0.0, float("inf")
        while True:
            block = self._run()
            spent += block.wall_ns / 1e6
            self.record.warmup_calls += len(block.calls_ns)
            median = float(np.median(block.calls_ns)) / 1e6
            is_steady = abs(median - before) < STEADY_SHARE * median
            self._calls, before = self._calls_of(median), median
            if spent >= least and (is_steady or spent >= WARMUP_LIMIT * least):
                self.record.is_steady = is_steady
                return

    def time_block(self) -> None:
        """Time one block and note it."""
        self.record.blocks.append(self._run())

    def _calls_of(self, median_ms: float) -> int:
        """Return how many calls fill a block."""
        least = 1 if median_ms >= SLOW_MS else LEAST_CALLS
        return max(least, min(MOST_CALLS, int(self._plan.block_ms / median_ms)))

    def _run(self) -> Block:
        request = {
            "calls": self._calls,
            "gap_ms": self._plan.gap_ms,
            "callers": self._plan.callers,
        }
        told = self._channel.ask(request)
        self.record.peak_bytes = int(told["peak_bytes"])
        return Block(tuple(told["ns"]), int(told["wall_ns"]))


class _Process:
    """A channel to a process over its stdin and stdout."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, request: dict[str, Any] | None) -> dict[str, Any]:
        """Send a request and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if request is not None:
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
def start_worker(engine: str) -> Iterator[Worker]:
    """Start a process, and kill it in the end; the engine's libraries load meanwhile."""
    process = subprocess.Popen(
        [sys.executable, "-m", "aigc_compress.bench.worker", engine],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield Worker(_Process(process))
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _as_error(message: str, exit_code: int) -> AigcCompressError:
    kinds = {2: UsageError, 3: NotOnThisMachineError}
    return kinds.get(exit_code, PassError)(message)
