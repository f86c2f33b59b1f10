"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aigc_compress.errors import UsageError

if TYPE_CHECKING:
    from aigc_compress.bench.latency import LatencyPlan
    from aigc_compress.budget import Budget
    from aigc_compress.workload import FeedOptions

__all__ = [
    "Calibration",
    "Device",
    "Evaluation",
    "Feed",
    "Images",
    "Json",
    "MaxDrop",
    "MinSqnr",
    "Processes",
    "Samples",
    "Seed",
    "Shape",
    "Threads",
    "budget",
    "feed_options",
    "latency_plan",
    "refuse_others",
    "whole_numbers",
]

Calibration = Annotated[
    Path | None,
    typer.Option(help=".npz, one array per input, first axis: samples"),
]
Evaluation = Annotated[
    Path | None, typer.Option(help=".npz like --calibration, for measuring quality and time")
]
Feed = Annotated[
    list[str] | None,
    typer.Option(
        help="noise for an input: 'z=normal(0,1)', 'x=uniform(-1,1)', 'n=randint(0,9)',"
        " 'sr=constant(16000)'"
    ),
]
Shape = Annotated[
    list[str] | None,
    typer.Option(help="sizes of an input's axes, 'x=1,3,224,224', or of one axis, 'height=64'"),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda, for training")]
Images = Annotated[Path | None, typer.Option("--data", help="folder with Fashion-MNIST's files")]
Threads = Annotated[int, typer.Option(min=1, max=256, help="intra-op threads while timing")]
Samples = Annotated[
    int | None,
    typer.Option(
        min=2, help="samples of the quality measurement", show_default="the task's default"
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="seed of everything random")]
MaxDrop = Annotated[
    str | None,
    typer.Option(help="allowed loss of quality: 0.5 in the metric's unit, or 1% of the baseline"),
]
MinSqnr = Annotated[
    float | None,
    typer.Option(
        help="least SQNR in dB against FP32, for models without a task", show_default="20"
    ),
]
Processes = Annotated[
    int, typer.Option(min=3, max=100, help="fresh processes per model while timing, at most")
]


def budget(max_drop: str | None, min_sqnr: float | None) -> Budget | None:
    """Gather what was said about quality; nothing said means the metric's default."""
    from aigc_compress.budget import Budget

    if max_drop is not None and min_sqnr is not None:
        raise UsageError("--max-drop is for models with a task, --min-sqnr for those without.")
    if min_sqnr is not None:
        return Budget(least_sqnr_db=min_sqnr)
    return None if max_drop is None else Budget.parse(max_drop)


def feed_options(
    calibration: Path | None,
    evaluation: Path | None,
    feed: list[str] | None,
    shape: list[str] | None,
) -> FeedOptions:
    """Gather what was said about feeds."""
    from aigc_compress.workload import FeedOptions

    return FeedOptions(calibration, evaluation, tuple(feed or ()), tuple(shape or ()))


def latency_plan(
    threads: int, processes: int, seed: int, *, budget_seconds: float | None = None, **more: Any
) -> LatencyPlan:
    """Gather what was said about timing; with `budget_seconds`, the quick meter's plan."""
    from aigc_compress.bench.latency import LatencyPlan
    from aigc_compress.bench.meter import quick_plan

    plan = LatencyPlan(threads=threads, processes=processes, seed=seed, **more)
    return plan if budget_seconds is None else quick_plan(budget_seconds, plan)


def refuse_others(context: typer.Context, allowed: Container[str], told: str) -> None:
    """Raise UsageError where the user set an option that has no effect here.

    Args:
        context: of the command, whose function has the options as parameters.
        allowed: names of the parameters that have one.
        told: what takes these alone, such as `--replay`.
    """
    idle = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in allowed and _is_given(context, name)
    ]
    if idle:
        raise UsageError(f"{', '.join(idle)} has no effect with {told}: drop it.")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def whole_numbers(text: str, option: str, *, least: int = 1) -> tuple[int, ...]:
    """Read `1,8,32`; raises UsageError."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) >= least for part in parts):
        raise UsageError(
            f"{option} {text!r} must be whole numbers of at least {least}, like 1,8,32."
        )
    return tuple(int(part) for part in parts)
