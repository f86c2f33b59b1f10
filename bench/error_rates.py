"""How often the benchmark is wrong here: verdicts on a model against itself, and on a known change.

    python -m aigc_compress.bench.error_rates gan cnn rnn --runs 20 -o rates.json

Every run times a model against itself, all processes, none stopped early. The rule that `bench`
stops by is then applied to the recorded processes as they came: a verdict other than `no difference
shown` is a false one. To see how often a true difference is found, the recorded times of one side
are divided by 1.05 and by 1.10, and the rule is applied again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from aigc_compress.api import to_onnx
from aigc_compress.artifact import save_onnx
from aigc_compress.console import progress, say, show_json, show_table, to_json
from aigc_compress.errors import AigcCompressError
from aigc_compress.loading import load_artifact
from aigc_compress.machine import describe_machine
from aigc_compress.storage import read_json, require_writable, write_bytes
from aigc_compress.workload import FeedOptions, make_workload

from .latency import Contestant, LatencyPlan, run_contest
from .statistics import RatioInterval, paired_speedup
from .stopping import LEAST_PROCESSES, Reason
from .trust import Watch

__all__ = ["ErrorRates", "decide", "error_rates"]

SCHEMA = "aigc-compress/error-rates/1"
CHANGES = (1.05, 1.10)


@dataclass(frozen=True)
class ErrorRates:
    """Counts of verdicts over `runs` runs of a model against itself.

    Attributes:
        model: the model's name.
        runs: number of runs.
        false_verdicts: runs in which it was called faster or slower than itself.
        found: runs in which a change was called faster, by the change's factor.
        half_width: median half width of the interval of the ratio, after all processes.
    """

    model: str
    runs: int
    false_verdicts: int
    found: dict[str, int]
    half_width: float


def decide(
    baseline: NDArray[np.float64], candidate: NDArray[np.float64], *, seed: int = 0
) -> RatioInterval:
    """Return the interval that `bench` would have ended with, looking after every process.

    Args:
        baseline: milliseconds per call, float64 (processes, blocks).
        candidate: the same of the candidate, same shape.
        seed: of the resampling.
    """
    reason: Reason = "all processes"
    count = len(baseline)
    rule = LatencyPlan(processes=count).stopping
    for looked in range(LEAST_PROCESSES, count):
        if rule.is_clear(baseline[:looked], [candidate[:looked]], seed=seed):
            count, reason = looked, "verdict clear"
            break
    return paired_speedup(
        baseline[:count], candidate[:count], seed=seed, confidence=rule.confidence(reason)
    )


def error_rates(model: str, pairs: NDArray[np.float64]) -> ErrorRates:
    """Count verdicts over runs in ms, (runs, 2 sides alike, processes, blocks)."""
    plain = [decide(a, b) for a, b in pairs]
    found = {
        f"{change:.2f}": sum(decide(a, b / change).verdict == "faster" for a, b in pairs)
        for change in CHANGES
    }
    false = sum(each.verdict != "no difference shown" for each in plain)
    widths = [each.half_width for each in plain]
    return ErrorRates(model, len(pairs), false, found, float(np.median(widths)))


def _time_against_itself(
    name: str, plan: LatencyPlan
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    artifact = load_artifact(name)
    workload = make_workload(artifact, FeedOptions())
    feeds = workload.timing_feeds(batch=1, length=1, seed=plan.seed)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(to_onnx(artifact, workload), path)
        contestant = Contestant(path, decides=False)
        sides = run_contest([contestant, contestant], feeds, plan).timings
    return sides[0].blocks_ms, sides[1].blocks_ms


def _command(
    models: Annotated[
        list[str] | None, typer.Argument(help="references, .pt or .onnx, on ONNX Runtime")
    ] = None,
    runs: Annotated[int, typer.Option(min=2, help="runs per model")] = 20,
    processes: Annotated[int, typer.Option(min=3)] = LatencyPlan.processes,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON to write")] = None,
    replay: Annotated[
        Path | None, typer.Option(help="count again from the times in a file of -o, time nothing")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Count false verdicts of models against themselves, and how often a known change is found."""
    if output is not None:
        require_writable(output)
    if replay is not None:
        document = read_json(replay, SCHEMA, "python -m aigc_compress.bench.error_rates -o")
    elif models:
        plan = LatencyPlan(threads=threads, processes=processes, stops_early=False)
        document = _measured(models, runs, plan)
    else:
        raise typer.BadParameter("Name the models to time, or a file with --replay.")
    rates = [error_rates(name, np.array(each)) for name, each in document["blocks_ms"].items()]
    document["rates"] = [asdict(each) for each in rates]
    if output is not None:
        write_bytes(output, (to_json(document) + "\n").encode())
    if json:
        show_json(document)
    else:
        _show(rates, document)


def _measured(models: Sequence[str], runs: int, plan: LatencyPlan) -> dict[str, Any]:
    """Return the document without its rates: blocks in ms as (runs, 2 sides, processes, blocks)."""
    watch, blocks = Watch(), {}
    for name in models:
        with progress(name) as on_step:
            pairs = []
            for run in range(runs):
                pairs.append(_time_against_itself(name, replace(plan, seed=run)))
                on_step(run + 1, runs)
        blocks[name] = np.round(np.array(pairs), 6).tolist()
    return {
        "schema": SCHEMA,
        "machine": describe_machine(),
        "trust": watch.stop().document(),
        "settings": asdict(plan),
        "rates": [],
        "blocks_ms": blocks,
    }


def _show(rates: Sequence[ErrorRates], document: dict[str, Any]) -> None:
    columns = ["model", "runs", "false verdicts", *(f"{c:.2f}x found" for c in CHANGES), "± median"]
    rows = [
        [
            each.model,
            str(each.runs),
            str(each.false_verdicts),
            *(str(n) for n in each.found.values()),
            f"{each.half_width:.1%}",
        ]
        for each in rates
    ]
    show_table("a model against itself, and against itself made faster", columns, rows)
    if document["trust"]["complaint"]:
        say(f"Note: the machine was not quiet: {document['trust']['complaint']}.")


def main() -> None:
    """Run the command line and leave with the documented exit code."""
    try:
        typer.run(_command)
    except AigcCompressError as error:
        say(f"Error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
