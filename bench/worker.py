"""A fresh process that holds one loaded model and times blocks of calls on request.

It says {"started": true} once the libraries of the engine named on its command line are in memory,
and a GPU has been found where it needs one: processes that start together do so together. Then it
reads one JSON line per request on stdin and answers each with one JSON line on stdout:
first {"path", "engine", "threads", "feeds", "inputs", "cores", "clock"}
-> {"load_ms", "first_ms", "cores": allowed CPU cores, "remarks"},
then {"calls": n, "gap_ms": g, "callers": c}
-> {"ns": [n whole numbers], "wall_ns", "peak_bytes": resident memory}, until stdin closes.
A failure is answered with {"error": message, "exit_code": code}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from aigc_compress.engines import ENGINES, HasDeviceClock, LoadsFiles, Remarks, get_engine
from aigc_compress.errors import AigcCompressError, UsageError, first_line
from aigc_compress.task import Feeds, Runner

__all__ = ["main", "peak_resident_bytes", "time_calls", "time_together"]

Timed = Callable[[dict[str, Any]], dict[str, Any]]


def time_calls(call: Callable[[], object], count: int, *, gap_ms: float = 0.0) -> list[int]:
    """Return the nanoseconds of each of `count` calls, with an idle gap before each."""
    clock = time.perf_counter_ns
    spent = []
    for _ in range(count):
        if gap_ms:
            time.sleep(gap_ms / 1e3)
        start = clock()
        call()
        spent.append(clock() - start)
    return spent


def time_together(call: Callable[[], object], count: int, *, callers: int) -> tuple[list[int], int]:
    """Share `count` calls out among callers that call at once; return their times and the wall's.

    Every caller makes the same number of calls, at least one, so `count` is rounded up.
    """
    each = -(-count // callers)
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(lambda _: None, range(callers)))  # threads start before the clock does
        start = time.perf_counter_ns()
        lists = list(pool.map(lambda _: time_calls(call, each), range(callers)))
        wall = time.perf_counter_ns() - start
    return [spent for times in lists for spent in times], wall


def main() -> None:
    """Serve requests until stdin closes."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever an engine prints must not mix with the answers
    try:
        _serve(answers)
    except AigcCompressError as error:
        _answer(answers, {"error": str(error), "exit_code": error.exit_code})
    except Exception as error:  # the parent cannot see this process: pass on whatever happened
        told = f"{type(error).__name__}: {first_line(error)}"
        _answer(answers, {"error": told, "exit_code": AigcCompressError.exit_code})


def _serve(answers: Any) -> None:
    _bring(sys.argv[1])
    _answer(answers, {"started": True})
    first = sys.stdin.readline()
    if not first:
        return
    timed = _open(json.loads(first), answers)
    for line in sys.stdin:
        _answer(answers, timed(json.loads(line)) | {"peak_bytes": peak_resident_bytes()})


def _bring(engine: str) -> None:
    """Bring into memory what the engine imports late; what it lacks is told when it loads."""
    known = ENGINES.get(engine)
    if known is None:
        return
    known.availability()
    if known.stage == "torch":
        importlib.import_module("aigc_compress.loading")


def _on_the_wall(call: Callable[[], object]) -> Timed:
    """Return what times calls by this process's clock, from numpy arrays to numpy arrays."""

    def timed(request: dict[str, Any]) -> dict[str, Any]:
        count, callers = int(request["calls"]), int(request["callers"])
        if callers > 1:
            spent, wall = time_together(call, count, callers=callers)
        else:
            spent = time_calls(call, count, gap_ms=float(request["gap_ms"]))
            wall = sum(spent)
        return {"ns": spent, "wall_ns": wall}

    return timed


def _on_the_device(session: Runner, engine: str, feeds: Feeds) -> Timed:
    """Return what times calls by the device's own clock; raises UsageError where it has none."""
    if not isinstance(session, HasDeviceClock):
        raise UsageError(f"The engine {engine} has no clock of its own: --clock wall.")
    timer = session.device_timer(feeds)

    def timed(request: dict[str, Any]) -> dict[str, Any]:
        spent = timer(int(request["calls"]))
        return {"ns": spent, "wall_ns": sum(spent)}

    return timed


def _open(request: dict[str, Any], answers: Any) -> Timed:
    cores = _keep_to(request["cores"])
    with np.load(request["feeds"]) as archive:
        feeds = {name: archive[f"arr_{i}"] for i, name in enumerate(request["inputs"])}
    session, load_ns = _load(Path(request["path"]), request["engine"], int(request["threads"]))

    def call() -> object:
        return session.run(feeds)

    start = time.perf_counter_ns()
    call()
    first_ms = (time.perf_counter_ns() - start) / 1e6
    is_on_device = request["clock"] == "device"
    timed = (
        _on_the_device(session, request["engine"], feeds) if is_on_device else _on_the_wall(call)
    )
    remarks = list(session.remarks) if isinstance(session, Remarks) else []
    told = {"load_ms": load_ns / 1e6, "first_ms": first_ms, "cores": cores, "remarks": remarks}
    _answer(answers, told)
    return timed


def _load(path: Path, engine: str, threads: int) -> tuple[Runner, int]:
    """Return a runner and the nanoseconds that the engine took to make it of the file."""
    known, clock = get_engine(engine), time.perf_counter_ns
    if isinstance(known, LoadsFiles):
        start = clock()
        return known.load_file(path, threads=threads), clock() - start
    from aigc_compress.loading import load_artifact

    artifact = load_artifact(path)
    start = clock()
    return known.load(artifact, threads=threads), clock() - start


def _keep_to(cores: Sequence[int]) -> list[int]:
    """Bind this process to CPU cores where the system can; return those it may use."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    if cores:
        try:
            os.sched_setaffinity(0, cores)
        except (OSError, OverflowError) as error:
            allowed = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
            raise UsageError(f"--cores {cores}: this machine allows {allowed}.") from error
    return sorted(os.sched_getaffinity(0))


def peak_resident_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def _answer(answers: Any, document: dict[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
