"""The verbs as functions: load, export, judge. `quantize` and `bench` have files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .artifact import Artifact, save_onnx
from .budget import Budget, Judgement, judge_quality
from .errors import UsageError
from .loading import load_artifact, resolve_source
from .passes import Context, ExportConfig
from .pipeline import run_passes
from .storage import require_writable
from .task import OnStep, Runner
from .workload import FeedOptions, TaskWorkload, Workload, make_workload

__all__ = ["export", "judge", "require_output", "to_onnx"]


def export(source: str | Path, output: Path, *, opset: int = 20, seed: int = 0) -> Artifact:
    """Export a torch artifact to ONNX, compare it with torch, and write it.

    Raises:
        UsageError: the source is an ONNX graph already, or its task is unknown.
        PassError: torch cannot export it, or outputs differ; nothing is written.
        OutputError: the file cannot be written.
    """
    require_output(output, source)
    artifact = load_artifact(source)
    if artifact.stage == "onnx":
        raise UsageError(f"{source} is an ONNX graph already.")
    exported = to_onnx(artifact, make_workload(artifact, FeedOptions()), opset=opset, seed=seed)
    save_onnx(exported, output)
    return exported


def require_output(output: Path, source: str | Path) -> None:
    """Raise before any work if the output is no .onnx, is the source, or cannot be written."""
    if output.suffix != ".onnx":
        raise UsageError(f"The output {output} must end in .onnx.")
    if output.exists() and output.resolve() == resolve_source(source).resolve():
        raise UsageError(f"The output {output} is the source itself. Name another file.")
    require_writable(output)


def to_onnx(artifact: Artifact, workload: Workload, *, opset: int = 20, seed: int = 0) -> Artifact:
    """Return the ONNX form of an artifact: itself, or its export."""
    if artifact.stage == "onnx":
        return artifact
    if not isinstance(workload, TaskWorkload):
        raise UsageError("A torch model is exported with its task's feeds; this one has no task.")
    axes = {name: dict(each) for name, each in workload.task.dynamic_axes().items()}
    config = ExportConfig(opset=opset, dynamic_axes=axes)
    context = Context(workload.check_feeds(), seed=seed)
    return run_passes(artifact, [("export", config)], context)


def judge(
    runners: Sequence[Runner],
    workload: Workload,
    *,
    samples: int | None,
    budget: Budget | None,
    seed: int,
    on_step: OnStep | None = None,
    with_exhibit: bool = False,
) -> list[Judgement]:
    """Measure the quality of runners; the first is the baseline of the others.

    With `with_exhibit`, each judgement also holds what its runner makes, where it can be shown.

    Raises:
        UsageError: a drop is allowed in a metric that a model without a task does not have.
    """
    if budget and (budget.absolute or budget.share) and not workload.has_baseline_quality:
        raise UsageError("--max-drop needs a task's metric; without a task use --min-sqnr.")
    qualities = [
        workload.measure(runner, runners[0], samples=samples, seed=seed, on_step=on_step)
        for runner in runners
    ]
    baseline = qualities[0] if workload.has_baseline_quality else None
    judgements = [judge_quality(quality, baseline, budget) for quality in qualities]
    if not with_exhibit:
        return judgements
    return [
        replace(judgement, exhibit=workload.exhibit(runner, seed=seed))
        for judgement, runner in zip(judgements, runners, strict=True)
    ]
