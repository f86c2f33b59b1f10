"""`run`: a recipe from the model to the shipped file, step by step, with what each step cost.

Every step's result stands in the run folder under the digest of what it was made from, so a killed
run goes on where it was; a training goes on from its own checkpoint. After every step its model is
timed against the source and judged on validation data. The last one meets the source in a full
contest and on test data.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from aigc_compress.bench.counting import count_costs, total_cost
from aigc_compress.bench.latency import Contestant, LatencyPlan, run_contest
from aigc_compress.bench.meter import QuickMeter
from aigc_compress.bench.statistics import RatioInterval
from aigc_compress.models.own import allow, is_own

from . import __version__
from .api import export_config, to_onnx
from .artifact import Artifact, read_onnx, save_onnx
from .bench_result import BenchOptions, BenchResult
from .benching import bench_models
from .budget import Budget, Judgement, judge_quality
from .cache import Cache, digest
from .checkpoint import save_torch
from .coach import Coach
from .engines.ort import OrtSession
from .errors import InputFileError, UsageError
from .loading import load_artifact
from .passes import PASSES, Context, ExportConfig
from .pipeline import check_steps, run_passes
from .quantizing import QuantizeOptions, quantize
from .recipe import Recipe
from .schemes import SCHEMES
from .storage import write_bytes
from .task import Feeds, OnStage, OnStep, Quality, quiet
from .workload import FeedOptions, TaskWorkload, Workload, make_workload

__all__ = [
    "CARD_SCHEMA",
    "SEARCH",
    "RunOptions",
    "RunResult",
    "SearchConfig",
    "StepReport",
    "checked_steps",
    "run",
]

SEARCH = "search"
CALIBRATION_SAMPLES = 512
CARD_SCHEMA = "aigc-compress/card/1"
TORCH_PASSES = {"autotune", "distill", "export", "finetune", "prune", "sparsify"}


class SearchConfig(BaseModel):
    """Settings of the step `search`: the whole of `quantize`, with what is left of the budget."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_speedup: float = Field(default=1.0, ge=1, description="over the step before")
    max_minutes: float = Field(default=20.0, gt=0, description="time of the search")
    max_bytes: int | None = Field(default=None, ge=1, description="largest file; none: any")
    processes: int = Field(default=8, ge=3, description="fresh processes of its contest")
    isa: str | None = Field(
        default=None, description="processor that the file is for, such as avx2; none: this one"
    )

    @field_validator("isa")
    @classmethod
    def _check_isa(cls, isa: str | None) -> str | None:
        if isa is not None and isa not in SCHEMES:
            raise ValueError(f"there is no {isa}; there are {', '.join(SCHEMES)}")
        return isa


@dataclass(frozen=True)
class RunOptions:
    """What a run is told.

    Attributes:
        folder: everything of the run.
        budget: allowed drop from the source; None takes the metric's default.
        samples: samples of the quality measurements; None takes the task's default.
        seed: of everything random.
        plan: how latency is measured.
    """

    folder: Path
    budget: Budget | None = None
    samples: int | None = None
    seed: int = 0
    plan: LatencyPlan = field(default_factory=LatencyPlan)


@dataclass(frozen=True)
class StepReport:
    """What a step's model needs and gives, in its ONNX form.

    Attributes:
        name: of the step; `source` is the model itself.
        path: of its ONNX file.
        macs: multiply-accumulates of a call.
        parameters: numbers in its constants.
        size_bytes: of the ONNX graph.
        speedup: over the source, by a short contest; None for the source.
        judgement: of its quality on validation data.
        was_kept: whether it came from an earlier run.
    """

    name: str
    path: Path
    macs: int
    parameters: int
    size_bytes: int
    speedup: RatioInterval | None
    judgement: Judgement
    was_kept: bool

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "path": str(self.path),
            "macs": self.macs,
            "parameters": self.parameters,
            "size_bytes": self.size_bytes,
            "speedup": None if self.speedup is None else asdict(self.speedup),
            "quality": self.judgement.document(),
            "was_kept": self.was_kept,
        }


@dataclass(frozen=True)
class RunResult:
    """What a run made: its steps, and the last one beside the source on test data."""

    recipe: Recipe
    steps: tuple[StepReport, ...]
    output: Path
    bench: BenchResult

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document."""
        return {
            "schema": "aigc-compress/run/1",
            "recipe": self.recipe.model_dump(mode="json", by_alias=True),
            "output": str(self.output),
            "steps": [each.document() for each in self.steps],
            "bench": self.bench.document(),
        }

    def card(self) -> dict[str, Any]:
        """Return what goes beside the file: the document without raw times and paths."""
        row = self.bench.rows[-1]
        left_out = ("path", "was_kept")
        steps = [
            {k: v for k, v in each.document().items() if k not in left_out} for each in self.steps
        ]
        return {
            "schema": CARD_SCHEMA,
            "recipe": self.recipe.model_dump(mode="json", by_alias=True),
            "steps": steps,
            "speedup": asdict(row.speedup),
            "smaller": self.bench.rows[0].size_bytes / row.size_bytes,
            "size_bytes": row.size_bytes,
            "quality": None if row.judgement is None else row.judgement.document(),
            "machine": dict(self.bench.machine),
            "sha256": row.file.sha256,
        }


def run(
    recipe: Recipe,
    source: str | Path,
    options: RunOptions,
    coach: Coach | None = None,
    *,
    on_step: OnStep | None = None,
    on_stage: OnStage | None = None,
    on_report: Callable[[StepReport], None] | None = None,
) -> RunResult:
    """Run a recipe on a model of a task.

    Args:
        recipe: its passes, and `search` for the whole of `quantize`.
        source: a reference's name, a `.pt` or an `.onnx` file.
        options: see RunOptions.
        coach: what trains models, for passes that do.
        on_step: called with (done, total) during long work.
        on_stage: called before every step and the last contest.
        on_report: called after every step.

    The folder also gets `card.json`: settings, numbers of every step, machine and digest.

    Raises:
        UsageError: faults of the recipe, all of them, before any work; or of the source.
        StoppedError: interrupted; the same call goes on.
    """
    artifact = load_artifact(source)
    if recipe.task is not None:
        allow(recipe.task)
        artifact = replace(artifact, task=recipe.task)
    steps = checked_steps(recipe, artifact, options, coach)
    options.folder.mkdir(parents=True, exist_ok=True)
    return _Run(recipe, artifact, options, coach, on_step, on_stage, on_report).through(steps)


def checked_steps(
    recipe: Recipe, artifact: Artifact, options: RunOptions, coach: Coach | None
) -> list[tuple[str, BaseModel]]:
    """Return the steps of a recipe for a model, without any work.

    Raises:
        UsageError: faults of the recipe, all of them; a model without a task; steps in a wrong
            order, or that this model cannot take.
    """
    steps = check_steps(recipe, {SEARCH: SearchConfig})
    if not isinstance(make_workload(artifact, FeedOptions()), TaskWorkload):
        raise UsageError("The model names no task, which a recipe needs for its quality.")
    _check_order(steps, artifact)
    context = Context((), seed=options.seed, coach=coach, source=artifact, folder=options.folder)
    for name, config in steps:
        check = getattr(PASSES.get(name), "check", None)
        if check is not None:
            check(artifact, config, context)
    return steps


def _check_order(steps: Sequence[tuple[str, BaseModel]], source: Artifact) -> None:
    """Raise UsageError where a step takes a torch module and gets a graph, or the other way."""
    stage: str = source.stage
    for number, (name, _) in enumerate(steps, start=1):
        takes = "torch" if name in TORCH_PASSES else stage if name == SEARCH else "onnx"
        if takes != stage:
            helps = "put export before it" if takes == "onnx" else "put it before the export"
            raise UsageError(f"Step {number}, {name}, takes a {takes} model: {helps}.")
        stage = "torch" if name in TORCH_PASSES - {"export", "autotune"} else "onnx"


class _Run:
    """One run of a recipe."""

    def __init__(
        self,
        recipe: Recipe,
        source: Artifact,
        options: RunOptions,
        coach: Coach | None,
        on_step: OnStep | None,
        on_stage: OnStage | None,
        on_report: Callable[[StepReport], None] | None,
    ) -> None:
        self._recipe, self._source, self._options = recipe, source, options
        self._coach, self._on_step = coach, on_step or quiet
        self._on_stage = on_stage or (lambda _number, _total, _name: None)
        self._on_report = on_report
        self._graph_path = options.folder / "source.onnx"
        self._cache = Cache(options.folder)
        self._baseline: Quality | None = None
        self._source_digest = ""
        self._reports: list[StepReport] = []

    def through(self, steps: Sequence[tuple[str, BaseModel]]) -> RunResult:
        """Make every step, and bench the last one against the source."""
        options = self._options
        artifact, stages = self._source, len(steps) + 2
        self._on_stage(1, stages, "the model itself")
        about = [self._source.source_sha256, options.seed, __version__]
        key, graph_key = _key(about), _key([*about, artifact.task])
        graph, path = self._graph(artifact, options.folder / "source", graph_key)
        self._source_digest = digest(graph)
        self._report("source", path, graph, was_kept=False)
        is_new = False  # from the first step that is made anew, all are
        for number, (name, config) in enumerate(steps, start=1):
            self._on_stage(number + 1, stages, name)
            key = _key([key, name, config.model_dump(mode="json")])
            stem = options.folder / f"{number:02d}-{name}"
            kept = None if is_new else _kept(stem, key)
            is_new = kept is None
            if kept is None:
                artifact = self._made(name, config, artifact, graph, stem, key)
                path = _keep(artifact, stem, key)
            else:
                artifact, path = kept
                artifact = replace(artifact, source_sha256=self._source.source_sha256)
            graph = artifact
            if artifact.stage == "torch":
                graph_stem = stem.with_name(f"{stem.name}-graph")
                graph, path = self._graph(artifact, graph_stem, key, is_new=is_new)
            self._report(f"{number} {name}", path, graph, was_kept=kept is not None)
        self._on_stage(stages, stages, "contest")
        bench = bench_models(
            [self._graph_path, path],
            BenchOptions(
                budget=options.budget, samples=options.samples, seed=options.seed, plan=options.plan
            ),
            on_step=self._on_step,
        )
        result = RunResult(self._recipe, tuple(self._reports), path, bench)
        card = json.dumps(result.card(), indent=2) + "\n"
        write_bytes(options.folder / "card.json", card.encode())
        return result

    def _graph(
        self, artifact: Artifact, stem: Path, key: str, *, is_new: bool = False
    ) -> tuple[Artifact, Path]:
        """Return a model's ONNX form and its file, made now or by an earlier run.

        Of a module of one's own it is always made now: its code is in no key.
        """
        has_own_code = artifact.spec is not None and is_own(artifact.spec.name)
        kept = None if is_new or has_own_code else _kept(stem, key)
        if kept is not None:
            return replace(kept[0], source_sha256=self._source.source_sha256), kept[1]
        workload = make_workload(artifact, FeedOptions())
        graph = to_onnx(artifact, workload, seed=self._options.seed)
        return graph, _keep(graph, stem, key)

    def _made(
        self,
        name: str,
        config: BaseModel,
        before: Artifact,
        graph: Artifact,
        stem: Path,
        key: str,
    ) -> Artifact:
        """Make a step's model of the one before, whose ONNX form is there already."""
        if isinstance(config, SearchConfig):
            return self._searched(config, stem)
        workload = make_workload(before, FeedOptions())
        assert isinstance(workload, TaskWorkload)
        seed = self._options.seed
        if isinstance(config, ExportConfig):
            usual = export_config(workload.task)
            axes = config.dynamic_axes or usual.dynamic_axes
            config = config.model_copy(update={"dynamic_axes": axes})
            if config == usual:
                return graph
        context = Context(
            workload.check_feeds(),
            tuple(workload.task.calibration(CALIBRATION_SAMPLES, seed=seed)),
            seed,
            on_step=self._on_step,
            coach=self._coach,
            source=self._source,
            folder=stem.with_name(f"{stem.name}-{key[:8]}"),
            clock=QuickMeter(threads=self._options.plan.threads, seed=seed),
            timing=workload.timing_feeds(batch=1, length=1, seed=seed),
        )
        return run_passes(before, [(name, config)], context)

    def _searched(self, config: SearchConfig, stem: Path) -> Artifact:
        """Quantize within what the steps before have left of the budget."""
        judgement = self._reports[-1].judgement
        assert judgement.baseline is not None
        left = judgement.allowed - judgement.quality.drop_from(judgement.baseline)
        options = QuantizeOptions(
            budget=Budget(absolute=max(left, 0.0)),
            samples=self._options.samples,
            least_speedup=config.min_speedup,
            seed=self._options.seed,
            plan=replace(self._options.plan, processes=config.processes),
            most_bytes=config.max_bytes,
            most_minutes=config.max_minutes,
            isa=config.isa,
        )
        made = stem.with_name(f"{stem.name}-answer.onnx")
        return quantize(self._reports[-1].path, made, options, on_step=self._on_step).artifact

    def _report(self, name: str, path: Path, graph: Artifact, *, was_kept: bool) -> None:
        """Tell what a step's graph needs, how fast it is and how good."""
        workload = make_workload(graph, FeedOptions())
        feeds = workload.timing_feeds(batch=1, length=1, seed=self._options.seed)
        sizes = [math.prod(each.dims) for each in graph.payload.graph.initializer]
        speedup, quality = self._measured(path, graph, workload, feeds)
        self._baseline = self._baseline or quality
        report = StepReport(
            name,
            path,
            total_cost(count_costs(graph.payload, feeds))["macs"],
            sum(sizes),
            graph.payload.ByteSize(),
            speedup,
            judge_quality(quality, self._baseline, self._options.budget),
            was_kept,
        )
        self._reports.append(report)
        if self._on_report is not None:
            self._on_report(report)

    def _measured(
        self, path: Path, graph: Artifact, workload: Workload, feeds: Feeds
    ) -> tuple[RatioInterval | None, Quality]:
        """Return the speed-up over the source and the quality, measured now or before."""
        options = self._options
        runner = OrtSession(graph, threads=os.cpu_count() or 1)

        def measure() -> tuple[RatioInterval | None, Quality]:
            quality = workload.measure(
                runner,
                runner,
                samples=options.samples,
                seed=options.seed,
                on_step=self._on_step,
                split="validation",
                with_details=False,
            )
            return self._speedup(path, feeds), quality

        about = [
            digest(graph),
            self._source_digest,
            options.samples,
            options.seed,
            asdict(options.plan),
        ]
        return self._cache.value(about, tuple[RatioInterval | None, Quality], measure)

    def _speedup(self, path: Path, feeds: Feeds) -> RatioInterval | None:
        if path == self._graph_path:
            return None
        options = self._options
        source = make_workload(self._source, FeedOptions())
        contest = run_contest(
            [Contestant(self._graph_path), Contestant(path, feeds=feeds)],
            source.timing_feeds(batch=1, length=1, seed=options.seed),
            replace(options.plan, processes=3),
            on_step=self._on_step,
        )
        return contest.speedup(1)


def _key(about: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _keep(artifact: Artifact, stem: Path, key: str) -> Path:
    """Write a step's result, and last the key that says what it was made from."""
    path = stem.with_suffix(".pt" if artifact.stage == "torch" else ".onnx")
    stem.with_suffix(".json").unlink(missing_ok=True)
    if artifact.stage == "torch":
        save_torch(artifact, path)
    else:
        save_onnx(artifact, path)
    write_bytes(stem.with_suffix(".json"), json.dumps({"key": key, "file": path.name}).encode())
    return path


def _kept(stem: Path, key: str) -> tuple[Artifact, Path] | None:
    """Return a step's result where it was made from the same."""
    try:
        told: Mapping[str, Any] = json.loads(stem.with_suffix(".json").read_text())
        if told["key"] != key:
            return None
        path = stem.with_name(told["file"])
        return (read_onnx(path) if path.suffix == ".onnx" else load_artifact(path)), path
    except (OSError, ValueError, KeyError, TypeError, InputFileError):
        return None
