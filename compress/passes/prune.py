"""Structured pruning as a pass: a smaller plain module, and the sizes that rebuild it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from aigc_compress.artifact import Artifact, Step
from aigc_compress.coach import Lesson
from aigc_compress.errors import PassError, UsageError
from aigc_compress.meter import Clock
from aigc_compress.task import Feeds

from .base import Context
from .export import ExportConfig, ExportPass

# What needs torch is imported where it is used: ONNX graphs are quantized without it.
if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn

    from .pruning import Loss, Plan, Prunable, WidthTable

__all__ = ["Importance", "PruneConfig", "PrunePass", "find_prunable"]

Importance = Literal["magnitude", "bn-scale", "activation", "taylor", "output"]
PLAIN = 8  # units to a block of the engine where nothing was measured
BATCHES = 32  # of feeds that importances rest on, at most


class PruneConfig(BaseModel):
    """Settings of structured pruning; exactly one target is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float | None = Field(default=None, gt=0, lt=1, description="share of units to take out")
    target_macs: float | None = Field(
        default=None, gt=0, description="multiplications left in a call; up to 1: share of them"
    )
    target_size: float | None = Field(
        default=None, gt=0, description="bytes of float32 parameters left; up to 1: share of them"
    )
    target_ms: float | None = Field(
        default=None,
        gt=0,
        description="milliseconds of a call in ONNX Runtime in FP32, timed on this machine",
    )
    importance: Importance = Field(default="output", description="how units are ranked")
    scope: Literal["global", "layer"] = Field(
        default="global", description="rank all units together, or prune every layer alike"
    )
    multiple: Annotated[int, Field(ge=1)] | Literal["measured"] = Field(
        default=PLAIN,
        description="widths that are left are multiples of it; measured: widths that"
        " ONNX Runtime is fast at, from a table of each kind of layer timed on this machine",
    )
    least: int = Field(default=8, ge=1, description="units that every layer keeps")
    keep: tuple[str, ...] = Field(default=(), description="parameters whose units all stay")

    @model_validator(mode="after")
    def _check_target(self) -> PruneConfig:
        given = [self.ratio, self.target_macs, self.target_size, self.target_ms]
        if sum(each is not None for each in given) != 1:
            raise ValueError("give exactly one of ratio, target_macs, target_size and target_ms")
        return self


class PrunePass:
    """Take out the units that matter least until the target is met.

    The step's numbers tell multiplications and parameters before and after, the width of every
    layer, which layers stay whole and why, and the measured tables of widths.
    """

    name = "prune"
    config = PruneConfig

    def check(self, artifact: Artifact, config: PruneConfig, context: Context) -> None:
        """Raise UsageError where units are ranked by a loss that there is not."""
        if config.importance == "taylor" and context.coach and artifact.task:
            context.coach.check(Lesson(artifact.task, artifact, seed=context.seed))

    def run(self, artifact: Artifact, config: PruneConfig, context: Context) -> Artifact:
        """Return the pruned module.

        Raises:
            PassError: nothing can be pruned, or the target is out of reach.
        """
        from .pruning import Plan, changed_sizes, choose, importances

        prunable = find_prunable(artifact.payload, context.check_feeds, keep=config.keep)
        if not prunable.families:
            reasons = "; ".join(f"{name}: {why}" for name, why in [*prunable.kept.items()][:3])
            raise PassError(f"No layer of this model can be pruned ({reasons or 'no weights'}).")
        feeds = list(context.calibration)[:BATCHES] or list(context.check_feeds)
        scores = importances(
            prunable,
            config.importance,
            batches=[tensors(artifact.payload, each) for each in feeds],
            loss=_loss(artifact, config, context),
            seed=context.seed,
        )
        start = Plan(prunable)
        tables = _tables(artifact, prunable, context) if config.multiple == "measured" else []

        def chosen(is_met: Callable[[Plan], bool]) -> Plan:
            return choose(
                prunable,
                scores,
                is_met,
                multiple=PLAIN if config.multiple == "measured" else config.multiple,
                least=config.least,
                evenly=config.scope == "layer",
                fast={name: table.fast for table in tables for name in table.families},
            )

        times: dict[str, list[float]] = {}
        if config.target_ms is None:
            plan = _planned(config, start, _target(config, start, prunable), chosen)
        else:
            plan, times = _timed(config.target_ms, artifact, prunable, chosen, context)
        smaller = prunable.without(plan.removed).eval()
        numbers = {
            **times,
            "macs": [start.cost.macs, plan.cost.macs],
            "parameters": [start.cost.parameters, plan.cost.parameters],
            "widths": _widths(prunable, plan),
            "kept": prunable.kept,
        }
        if config.multiple == "measured":
            numbers["width_tables"] = [_told(table) for table in tables]
            known = {name for table in tables for name in table.families}
            numbers["unmeasured"] = [f.name for f in prunable.families if f.name not in known]
        step = Step(self.name, config.model_dump(mode="json"), context.seed, numbers)
        made = artifact.then(smaller, step, stage="torch")
        if artifact.spec is None:
            return made
        changed = changed_sizes(artifact.payload, smaller)
        before = artifact.spec.sizes
        paths = dict.fromkeys([*before, *changed])  # in order: files of one seed are the same
        sizes = {path: {**before.get(path, {}), **changed.get(path, {})} for path in paths}
        return replace(made, spec=replace(artifact.spec, sizes=sizes))


def find_prunable(
    module: nn.Module, feeds: Sequence[Feeds], *, keep: Sequence[str] = ()
) -> Prunable:
    """Return what can be taken out of a module, proven on the largest of these feeds.

    Raises:
        PassError: torch.export cannot follow the module.
        UsageError: a name in `keep` is no parameter.
    """
    from .pruning import find_units

    names = dict(module.named_parameters())
    unknown = [each for each in keep if each not in names]
    if unknown:
        raise UsageError(f"keep: the model has no parameter {', '.join(unknown)}.")
    inputs = tensors(module, max(feeds, key=_elements))
    found = find_units(module, inputs)
    stays = [f for f in found.families if {each for each, _ in f.places} & {*keep}]
    return replace(
        found,
        families=tuple(each for each in found.families if each not in stays),
        kept={**found.kept, **{each.name: "asked to keep" for each in stays}},
    )


def _loss(artifact: Artifact, config: PruneConfig, context: Context) -> Loss | None:
    """Return the task's loss where units are ranked by it and there is one."""
    if config.importance != "taylor" or context.coach is None or artifact.task is None:
        return None
    return context.coach.loss(Lesson(artifact.task, artifact, seed=context.seed))


def tensors(module: Any, feeds: Feeds) -> list[Tensor]:
    """Return feeds as tensors in the order of the module's inputs."""
    import torch

    return [torch.from_numpy(np.asarray(feeds[name])) for name in module.input_names]


def _planned(
    config: PruneConfig,
    start: Plan,
    is_met: Callable[[Plan], bool],
    chosen: Callable[[Callable[[Plan], bool]], Plan],
) -> Plan:
    """Return the plan that meets a target that can be counted; raises PassError."""
    plan = chosen(is_met)
    if not is_met(plan):
        raise PassError(
            f"The target is out of reach: with {config.least} units left in every layer,"
            f" {plan.cost.macs:,} of {start.cost.macs:,} multiplications and"
            f" {plan.cost.parameters:,} of {start.cost.parameters:,} parameters remain."
        )
    return plan


def _timed(
    target_ms: float,
    artifact: Artifact,
    prunable: Prunable,
    chosen: Callable[[Callable[[Plan], bool]], Plan],
    context: Context,
) -> tuple[Plan, dict[str, list[float]]]:
    """Return the plan that is fast enough, and its milliseconds before and after."""
    from .pruning import Plan, choose_by_time

    clock = _clock(context)
    feeds = _timing_feeds(context)
    whole = Plan(prunable).cost.macs

    def at_share(share: float) -> Plan:
        macs = share * whole
        return chosen(lambda plan: plan.cost.macs <= macs)

    def ms_of(plan: Plan) -> float:
        smaller = prunable.without(plan.removed).eval()
        alone = replace(context, check_feeds=(feeds,))
        graph = ExportPass().run(replace(artifact, payload=smaller), ExportConfig(), alone)
        return clock.milliseconds([graph], feeds)[0]

    plan, after, before = choose_by_time(at_share, ms_of, target_ms)
    return plan, {"milliseconds": [before, after]}


def _tables(artifact: Artifact, prunable: Prunable, context: Context) -> list[WidthTable]:
    """Return what widths take, by kind of layer; raises PassError where nothing tells the time."""
    from .pruning import measure_widths

    clock = _clock(context)

    def times_of(models: Sequence[ModelProto], feeds: Feeds) -> Sequence[float]:
        return clock.milliseconds([Artifact("onnx", model) for model in models], feeds)

    return measure_widths(
        prunable, tensors(artifact.payload, _timing_feeds(context)), times_of, context.on_step
    )


def _told(table: WidthTable) -> dict[str, Any]:
    """Return a table for people and files; JSON has no numbers as keys."""
    return {
        "kind": table.kind,
        "layer": table.layer,
        "ms": [[width, ms] for width, ms in table.milliseconds.items()],
        "fast": list(table.fast),
    }


def _clock(context: Context) -> Clock:
    if context.clock is None:
        raise PassError("Pruning by time needs something that tells it: use `prune` or `run`.")
    return context.clock


def _timing_feeds(context: Context) -> Feeds:
    return context.timing or min(context.check_feeds, key=_elements)


def _elements(feeds: Feeds) -> int:
    return sum(value.size for value in feeds.values())


def _target(config: PruneConfig, start: Plan, prunable: Prunable) -> Callable[[Plan], bool]:
    if config.ratio is not None:
        wanted = config.ratio * sum(len(family.units) for family in prunable.families)
        return lambda plan: len(plan.removed) >= wanted
    if config.target_macs is not None:
        macs = _absolute(config.target_macs, start.cost.macs)
        return lambda plan: plan.cost.macs <= macs
    assert config.target_size is not None
    size = _absolute(config.target_size, start.cost.size_bytes)
    return lambda plan: plan.cost.size_bytes <= size


def _absolute(value: float, whole: int) -> float:
    return value * whole if value <= 1 else value


def _widths(prunable: Prunable, plan: Plan) -> dict[str, list[int]]:
    gone = {unit.root for unit in plan.removed}
    return {
        family.name: [
            len(family.units),
            sum(unit.root not in gone for unit in family.units),
        ]
        for family in prunable.families
    }
