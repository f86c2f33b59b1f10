"""A fresh process that holds one loaded model and times blocks of calls on request.

It reads one JSON line per request on stdin and answers each with one JSON line on stdout:
first {"path", "engine", "threads", "feeds", "inputs"} -> {"ready": true, "load_ms", "first_ms"},
then {"calls": n, "gap_ms": g} -> {"ns": [n whole numbers], "peak_bytes": resident memory}, until
stdin closes. A failure is answered with {"error": message, "exit_code": code}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aigc_compress.engines import get_engine
from aigc_compress.errors import AigcCompressError, first_line
from aigc_compress.loading import load_artifact

__all__ = ["main", "peak_resident_bytes", "time_calls"]


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
    call = _open(json.loads(sys.stdin.readline()), answers)
    for line in sys.stdin:
        request = json.loads(line)
        spent = time_calls(call, int(request["calls"]), gap_ms=float(request["gap_ms"]))
        _answer(answers, {"ns": spent, "peak_bytes": peak_resident_bytes()})


def _open(request: dict[str, Any], answers: Any) -> Callable[[], object]:
    with np.load(request["feeds"]) as archive:
        feeds = {name: archive[f"arr_{i}"] for i, name in enumerate(request["inputs"])}
    artifact = load_artifact(Path(request["path"]))
    start = time.perf_counter_ns()
    session = get_engine(request["engine"]).load(artifact, threads=int(request["threads"]))
    loaded = time.perf_counter_ns()

    def call() -> object:
        return session.run(feeds)

    call()
    first = time.perf_counter_ns()
    told = {"ready": True, "load_ms": (loaded - start) / 1e6, "first_ms": (first - loaded) / 1e6}
    _answer(answers, told)
    return call


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
