"""A fresh process that holds one loaded model and times blocks of calls on request.

It reads one JSON line per request on stdin and answers each with one JSON line on stdout:
first {"path", "engine", "threads", "feeds"} -> {"ready": true, "load_ms", "first_ms"},
then {"calls": n} -> {"ns": [n whole numbers]}, until stdin closes. A failure is answered with
{"error": message, "exit_code": code}.
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
from aigc_compress.errors import AigcCompressError
from aigc_compress.loading import load_artifact

__all__ = ["main", "time_calls"]


def time_calls(call: Callable[[], object], count: int) -> list[int]:
    """Return the nanoseconds of each of `count` calls."""
    clock = time.perf_counter_ns
    spent = []
    for _ in range(count):
        start = clock()
        call()
        spent.append(clock() - start)
    return spent


def main() -> None:
    """Serve requests until stdin closes."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever an engine prints must not mix with the answers
    try:
        call = _open(json.loads(sys.stdin.readline()), answers)
    except AigcCompressError as error:
        _answer(answers, {"error": str(error), "exit_code": error.exit_code})
        return
    for line in sys.stdin:
        _answer(answers, {"ns": time_calls(call, int(json.loads(line)["calls"]))})


def _open(request: dict[str, Any], answers: Any) -> Callable[[], object]:
    with np.load(request["feeds"]) as archive:
        feeds = {name: archive[name] for name in archive.files}
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


def _answer(answers: Any, document: dict[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
