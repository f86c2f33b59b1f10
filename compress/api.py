"""The verbs as functions: load, export, judge. `quantize` and `bench` have files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aigc_compress.bench.meter import QuickMeter

from .artifact import Artifact, save_onnx
from .budget import Budget, Judgement, judge_quality
from .checkpoint import save_torch
from .coach import Coach
from .errors import UsageError
from .loading import load_artifact, resolve_source
from .passes import Context, ExportConfig, PruneConfig
from .pipeline import run_passes
from .storage import require_writable
from .task import OnStep, Runner, Split, Task, quiet
from .workload import FeedOptions, TaskWorkload, Workload, make_workload

__all__ = ["export", "export_config", "judge", "prune", "require_output", "to_onnx"]


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


def _is_alike(one: Workload, other: Workload) -> bool:
    """Whether two models take the same feeds."""
    shapes = [
        {name: value.shape for name, value in each.check_feeds()[0].items()}
        for each in (one, other)
    ]
    return shapes[0] == shapes[1]


def prune(
    source: str | Path,
    output: Path,
    config: PruneConfig,
    *,
    coach: Coach | None = None,
    samples: int = 512,
    seed: int = 0,
    on_step: OnStep = quiet,
) -> Artifact:
    """Take units out of a torch model until a target is met, and write what is left.

    Args:
        source: a reference's name or a `.pt` of ours.
        output: the `.pt` to write.
        config: the target, and how units are ranked.
        coach: what knows the task's loss, for `taylor`; None: nothing does.
        samples: of calibration data, that importances rest on.
        seed: of what is random.
        on_step: called with (done, total) while widths are measured.

    Raises:
        UsageError: the source is an ONNX graph, or its task is unknown.
        PassError: nothing can be pruned, or the target is out of reach; nothing is written.
        OutputError: the file cannot be written.
    """
    require_output(output, source, suffix=".pt")
    artifact = load_artifact(source)
    if artifact.stage != "torch":
        raise UsageError(f"{source} is an ONNX graph; structured pruning needs the torch model.")
    workload = make_workload(artifact, FeedOptions())
    assert isinstance(workload, TaskWorkload)
    feeds = tuple(workload.task.calibration(samples, seed=seed))
    context = Context(
        workload.check_feeds(),
        feeds,
        seed,
        on_step=on_step,
        clock=QuickMeter(seed=seed),
        coach=coach,
        timing=workload.timing_feeds(batch=1, length=1, seed=seed),
    )
    pruned = run_passes(artifact, [("prune", config)], context)
    save_torch(pruned, output)
    return pruned


def require_output(output: Path, source: str | Path, *, suffix: str = ".onnx") -> None:
    """Raise before any work if the output has another suffix, is the source, or is unwritable."""
    if not output.name.endswith(suffix):
        raise UsageError(f"The output {output} must end in {suffix}.")
    if output.exists() and output.resolve() == resolve_source(source).resolve():
        raise UsageError(f"The output {output} is the source itself. Name another file.")
    require_writable(output)


def to_onnx(artifact: Artifact, workload: Workload, *, opset: int = 20, seed: int = 0) -> Artifact:
    """Return the ONNX form of an artifact: itself, or its export."""
    if artifact.stage == "onnx":
        return artifact
    if not isinstance(workload, TaskWorkload):
        raise UsageError("A torch model is exported with its task's feeds; this one has no task.")
    config = export_config(workload.task, opset=opset)
    context = Context(workload.check_feeds(), seed=seed)
    return run_passes(artifact, [("export", config)], context)


def export_config(task: Task, *, opset: int = 20) -> ExportConfig:
    """Return how a task's models are exported."""
    axes = {name: dict(each) for name, each in task.dynamic_axes().items()}
    return ExportConfig(opset=opset, dynamic_axes=axes)


def judge(
    runners: Sequence[Runner],
    workloads: Sequence[Workload],
    *,
    samples: int | None,
    budget: Budget | None,
    seed: int,
    on_step: OnStep | None = None,
    split: Split = "test",
    with_exhibit: bool = False,
) -> list[Judgement]:
    """Measure the quality of runners, each by its workload; the first is the others' baseline.

    Choices are made on the `validation` split; what is reported comes from `test`.
    With `with_exhibit`, each judgement also holds what its runner makes, where it can be shown.

    Raises:
        UsageError: a drop is allowed in a metric that a model without a task does not have.
    """
    has_baseline = workloads[0].has_baseline_quality
    if budget and (budget.absolute or budget.share) and not has_baseline:
        raise UsageError("--max-drop needs a task's metric; without a task use --min-sqnr.")
    qualities = [
        # A model of another shape is not compared with the baseline output by output.
        workload.measure(
            runner,
            runners[0] if _is_alike(workload, workloads[0]) else runner,
            samples=samples,
            seed=seed,
            on_step=on_step,
            split=split,
        )
        for runner, workload in zip(runners, workloads, strict=True)
    ]
    baseline = qualities[0] if has_baseline else None
    judgements = [judge_quality(quality, baseline, budget) for quality in qualities]
    if not with_exhibit:
        return judgements
    return [
        replace(judgement, exhibit=workload.exhibit(runner, seed=seed))
        for judgement, runner, workload in zip(judgements, runners, workloads, strict=True)
    ]
