"""`compress`: the shipped recipe that fits a model and a budget, tried from cheap to thorough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aigc_compress.models.own import allow

from .artifact import Artifact
from .coach import Coach
from .errors import UsageError
from .loading import load_artifact
from .recipe import Recipe, load_recipe, recipe_names
from .running import RunOptions, RunResult, StepReport, checked_steps, run
from .task import OnStage, OnStep

__all__ = ["Choice", "choose_recipes", "compress"]

NO_TRAINING = "int8"
OWN_MODEL = "own-edge"


@dataclass(frozen=True)
class Choice:
    """What `compress` made.

    Attributes:
        result: of the recipe whose file is handed back.
        tried: every run, in order.
        target_ms: what was asked for; None: as fast as it goes.
        why: the recipes' names with the reason for their order.
    """

    result: RunResult
    tried: tuple[RunResult, ...]
    target_ms: float | None
    why: str

    @property
    def is_met(self) -> bool:
        """Whether the file is within the budget, and as fast as was asked for."""
        return _within(self.result) and _fast_enough(self.result, self.target_ms)

    def document(self) -> dict[str, Any]:
        """Return the choice as one JSON document."""
        return {
            "schema": "aigc-compress/compress/1",
            "why": self.why,
            "target_ms": self.target_ms,
            "is_met": self.is_met,
            "tried": [each.recipe.name for each in self.tried],
            "run": self.result.document(),
        }


def choose_recipes(
    artifact: Artifact,
    options: RunOptions,
    coach: Coach | None,
    *,
    target_ms: float | None = None,
) -> tuple[list[Recipe], str]:
    """Return the recipes for a model, in the order in which they are tried, and why.

    A recipe with training comes where the task has a training step: first where the model is to be
    as fast as it goes, last where a target may be met without it.

    Raises:
        UsageError: the model has no task, so nothing can say how good the result is.
    """
    if artifact.task is None:
        raise UsageError(
            "This model names no task, so it cannot be trained and its quality not be measured."
            " Use `quantize` for it, or a recipe with a task of your own (examples/denoise.yaml)."
        )
    int8 = load_recipe(NO_TRAINING)
    name = f"{artifact.task}-edge"
    edge = load_recipe(name if name in recipe_names() else OWN_MODEL)
    why_not = _why_not(edge, artifact, options, coach)
    if why_not:
        return [int8], f"{int8.name} alone, since {why_not}"
    if target_ms is None:
        return [edge, int8], f"{edge.name} first, since it goes furthest; {int8.name} if it fails"
    return [int8, edge], f"{int8.name} first, since it needs no training; {edge.name} if it fails"


def compress(
    source: str,
    options: RunOptions,
    coach: Coach | None = None,
    *,
    task: str | None = None,
    target_ms: float | None = None,
    on_choice: Callable[[str], None] | None = None,
    on_step: OnStep | None = None,
    on_stage: OnStage | None = None,
    on_report: Callable[[StepReport], None] | None = None,
) -> Choice:
    """Run the recipes that fit a model until one result is within the budget and fast enough.

    Args:
        source: a reference, a file, or a module of the user's own.
        options: of each run; its folder gets one folder per recipe.
        coach: what trains; None: nothing is trained.
        task: the user's own task, `package.module:attribute`.
        target_ms: milliseconds of a call at batch 1; None: as fast as it goes.
        on_choice: told once which recipes are tried, and why.
        on_step: called with (done, total) during long work.
        on_stage: called before every step.
        on_report: called after every step.

    Returns:
        The fastest result within the budget; where none is, the nearest to it.

    Raises:
        UsageError: the model has no task.
        StoppedError: interrupted; the same call goes on.
    """
    artifact = load_artifact(source)
    if task is not None:
        allow(task)
        artifact = replace(artifact, task=task)
    recipes, why = choose_recipes(artifact, options, coach, target_ms=target_ms)
    if on_choice is not None:
        on_choice(why)
    tried: list[RunResult] = []
    for recipe in recipes:
        told = recipe if task is None else recipe.model_copy(update={"task": task})
        each = replace(options, folder=options.folder / recipe.name)
        result = run(
            told, source, each, coach, on_step=on_step, on_stage=on_stage, on_report=on_report
        )
        tried.append(result)
        if _within(tried[-1]) and _fast_enough(tried[-1], target_ms):
            break
    return Choice(_best(tried), tuple(tried), target_ms, why)


def _why_not(
    recipe: Recipe, artifact: Artifact, options: RunOptions, coach: Coach | None
) -> str | None:
    """Return why a recipe with training cannot be tried, without a full stop; None if it can."""
    if coach is None:
        return "training was ruled out"
    if artifact.stage != "torch":
        return "an ONNX graph cannot be trained"
    try:
        checked_steps(recipe, artifact, options, coach)
    except UsageError as error:
        return str(error).rstrip(".")
    return None


def _best(tried: Sequence[RunResult]) -> RunResult:
    within = [each for each in tried if _within(each)]
    return min(within or tried, key=_ms if within else _excess)


def _ms(result: RunResult) -> float:
    return result.bench.rows[-1].timing.median_ms


def _within(result: RunResult) -> bool:
    judgement = result.bench.rows[-1].judgement
    return judgement is not None and judgement.within


def _excess(result: RunResult) -> float:
    judgement = result.bench.rows[-1].judgement
    assert judgement is not None
    assert judgement.baseline is not None
    return judgement.quality.drop_from(judgement.baseline) - judgement.allowed


def _fast_enough(result: RunResult, target_ms: float | None) -> bool:
    return target_ms is None or _ms(result) <= target_ms
