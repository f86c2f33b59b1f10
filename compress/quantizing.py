"""`quantize` as a function: the search from the FP32 graph to the file, and what it found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

from aigc_compress.bench.latency import LatencyPlan
from aigc_compress.bench.meter import QuickMeter
from aigc_compress.bench.statistics import RatioInterval

from .api import require_output, to_onnx
from .artifact import Artifact, Step, graph_tensors, save_onnx
from .budget import LEAST_SQNR_DB, Budget, Judgement
from .cache import Cache, CachedMeter, cache_root, digest, digest_feeds
from .candidates import Maker, Search
from .engine_candidates import AUTO_ENGINES, EngineCandidates, engine_notes, other_engines
from .engines import check_feeds
from .errors import PassError, StoppedError, first_line, unknown_name
from .gate import FIRST_ENGINE, Candidate, Finding, Gate, Gated, GateOptions
from .loading import load_artifact
from .machine import machine_scheme
from .passes import Context, Mode
from .passes.saturation import find_saturation
from .schemes import SCHEMES, Scheme
from .storage import digest_file
from .task import Feeds, OnStep, Split, quiet
from .why_not import NodeReport, choice_of, why_not
from .workload import FeedOptions, Workload, make_workload

__all__ = ["QuantizeOptions", "QuantizeResult", "quantize"]

MARGIN_DB = 1.5
NAMED_LAYERS = 3
TASK_STEPS_DB = (5.0, 10.0, 15.0)


@dataclass(frozen=True)
class QuantizeOptions:
    """Everything that `quantize` may be told.

    Attributes:
        mode: auto, static or dynamic.
        feeds: calibration and evaluation feeds for a model without a task.
        budget: allowed drop; None takes the metric's default.
        samples: samples of the quality measurement; None takes the task's default.
        least_speedup: what the lower end of the speed-up's interval must exceed.
        most_bytes: largest size of the file; None: any.
        seed: of calibration feeds and statistics.
        plan: how latency is measured.
        most_minutes: time after which no further candidate is made; the contest of those that are
            left comes on top. None: no limit.
        is_fresh: whether nothing is taken from an earlier run of the same request.
        isa: the processor that the answer is for, a name in `schemes.SCHEMES`; None: this one.
        engines: what the answer may run on: names in `engines.ENGINES`, or `auto` for every engine
            of ONNX files that is here; empty: ONNX Runtime.
    """

    mode: Mode = "auto"
    feeds: FeedOptions = field(default_factory=FeedOptions)
    budget: Budget | None = None
    samples: int | None = None
    least_speedup: float = 1.0
    most_bytes: int | None = None
    seed: int = 0
    plan: LatencyPlan = field(default_factory=LatencyPlan)
    most_minutes: float | None = 20.0
    is_fresh: bool = False
    isa: str | None = None
    engines: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizeResult:
    """What came out, with its evidence; `document` is the JSON form.

    Attributes:
        artifact: what was written.
        output: where.
        gated: the gate's answer, with the speed-up, the quality and what became of every candidate.
        sizes: bytes of the FP32 graph and of the answer.
        notes: what the user should know.
        threads: intra-op threads of the measurement.
        nodes: what runs on integers and what does not, and why; the longest time first.
    """

    artifact: Artifact
    output: Path
    gated: Gated
    sizes: tuple[int, int]
    notes: tuple[str, ...]
    threads: int
    nodes: tuple[NodeReport, ...] = ()

    @property
    def speedup(self) -> RatioInterval:
        """Return how many times faster than FP32 the answer is."""
        return self.gated.speedup

    @property
    def judgement(self) -> Judgement:
        """Return the quality of the answer on test data."""
        return self.gated.judgement

    @property
    def numbers(self) -> dict[str, Any]:
        """Return what the pass that wrote INT8 told of it; empty where FP32 is shipped."""
        return dict(self.artifact.counted)

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document."""
        return {
            "schema": "aigc-compress/quantize/2",
            "output": str(self.output),
            **self.evidence(),
            "scheme": self.numbers.get("scheme", {}),
            "operators": {
                **{"int8": {}, "float": {}, "reasons": {}},
                **self.numbers.get("operators", {}),
            },
            "nodes": [each.document() for each in self.nodes],
            "notes": list(self.notes),
        }

    def evidence(self) -> dict[str, Any]:
        """Return verdict, speed, latency, quality, size, and why nothing else was shipped."""
        timings = self.gated.contest.timings
        return {
            "shipped": self.gated.winner.name,
            "engine": self.gated.winner.engine,
            "is_final": True,
            "is_fallback": self.gated.is_fallback,
            "verdict": self.speedup.verdict,
            "speedup": asdict(self.speedup),
            "latency_ms": {
                "before": timings[0].median_ms,
                "after": timings[self.gated.index].median_ms,
            },
            "threads": self.threads,
            "quality": self.judgement.document(),
            "size_bytes": {"before": self.sizes[0], "after": self.sizes[1]},
            "candidates": [each.document() for each in self.gated.findings],
        }


def quantize(
    source: str | Path,
    output: Path,
    options: QuantizeOptions | None = None,
    *,
    on_step: OnStep | None = None,
) -> QuantizeResult:
    """Write the fastest form of a model within the budget, with the evidence; at worst FP32.

    After every round of candidates the best so far is written, so that an interrupted search leaves
    something. What was made and measured is kept: the same call goes on where it was.

    Args:
        source: a reference's name, a `.pt` or an `.onnx` file.
        output: the `.onnx` file to write; it appears whole or not at all.
        options: see QuantizeOptions.
        on_step: called with (done, total) during the measurements.

    Raises:
        UsageError: the source or an option is wrong (also its kinds InputFileError, FeedError).
        PassError: the FP32 graph itself does not run.
        OutputError: the file cannot be written.
        StoppedError: Ctrl-C came; the message says what was written.
    """
    options = options or QuantizeOptions()
    others, missing = other_engines(options.engines)
    require_output(output, source)
    artifact = load_artifact(source)
    workload = make_workload(artifact, options.feeds)
    baseline = to_onnx(artifact, workload, seed=options.seed)
    is_elsewhere = bool(others) and not {FIRST_ENGINE, AUTO_ENGINES} & {*options.engines}
    options = replace(options, engines=others)
    search = _Quantization(
        baseline, workload, output, options, on_step or quiet, is_elsewhere=is_elsewhere
    )
    result = search.run()
    return replace(result, notes=(*result.notes, *missing))


class _Quantization:
    """One search, from the FP32 graph to the file."""

    def __init__(
        self,
        baseline: Artifact,
        workload: Workload,
        output: Path,
        options: QuantizeOptions,
        on_step: OnStep,
        *,
        is_elsewhere: bool = False,
    ) -> None:
        self._baseline, self._workload = baseline, workload
        self._output, self._options = output, options
        feeds = workload.timing_feeds(batch=1, length=1, seed=options.seed)
        check_feeds(feeds, graph_tensors(baseline.payload)[0])
        calibration = workload.calibration(seed=options.seed)
        self._feeds = feeds
        self._cache = _open_cache(baseline, workload, chain([feeds], calibration), options)
        quick = QuickMeter(threads=options.plan.threads, seed=options.seed)
        meter = self._meter = CachedMeter(quick, self._cache)
        search = _search(options, has_task=workload.has_baseline_quality)
        checks = workload.check_feeds()
        context = Context(checks, calibration, options.seed, on_step=on_step, meter=meter)
        self._context = context
        self._maker = Maker(baseline, search, context, feeds, cache=self._cache)
        self._gate = Gate(
            Candidate("FP32", baseline),
            workload,
            meter,
            _asked(options),
            cache=self._cache,
            on_step=on_step,
        )
        self._best: Finding | None = None
        self._others = EngineCandidates(
            options.engines,
            baseline,
            context,
            feeds,
            judge=self._judged,
            limits=[options.budget and asdict(options.budget), options.samples],
            scheme=_scheme(options),
            cache=self._cache,
            is_late=self._maker.is_late,
        )
        self._is_elsewhere = is_elsewhere

    def run(self) -> QuantizeResult:
        try:
            for candidates in self._maker.rounds(self._gate.finding):
                self._gate.admit(candidates)
                if not self._is_elsewhere:
                    self._keep_best()
            if self._options.engines:
                others = [*self._others.made(self._gate.in_the_race)]
                if self._is_elsewhere:
                    self._gate.withdraw(FIRST_ENGINE, "not on an engine that was asked for")
                self._gate.admit(others)
                self._keep_best()
            return self._save(self._gate.decide())
        except KeyboardInterrupt as error:
            raise StoppedError(self._told_when_stopped()) from error

    def _judged(self, graph: Artifact, split: Split) -> Judgement:
        return self._gate.judge(Candidate("", graph), split)

    def _keep_best(self) -> None:
        """Write the best so far, with evidence that says that the search has not ended."""
        best = self._gate.best
        if best is None or best[1] == self._best:
            return
        candidate, self._best = best
        about = {"shipped": candidate.name, "engine": candidate.engine, "is_final": False}
        numbers = {**about, **self._best.document()}
        _write(candidate, numbers, self._output, self._options)

    def _told_when_stopped(self) -> str:
        goes_on = "The same command goes on from here."
        if self._best is None or self._best.quick is None:
            return f"Interrupted; nothing within the budget was found yet. {goes_on}"
        return (
            f"Interrupted; {self._output} holds the best so far: {self._best.name},"
            f" {self._best.quick.ratio:.2f}x by the quick meter, within the budget on validation"
            f" data. {goes_on}"
        )

    def _save(self, gated: Gated) -> QuantizeResult:
        """Write the answer with its evidence in the metadata."""
        winner = cast(Artifact, gated.winner.artifact)
        sizes = self._baseline.payload.ByteSize(), winner.payload.ByteSize()
        notes = (
            *self._workload.calibration_notes,
            *self._workload.notes,
            *self._workload.search_notes(samples=self._options.samples),
            *_given_up(winner),
            *_elsewhere(winner, self._options),
            *self._notes(),
            *engine_notes(gated.winner),
        )
        threads = self._options.plan.threads
        result = QuantizeResult(winner, self._output, gated, sizes, notes, threads)
        _write(gated.winner, result.evidence(), self._output, self._options)
        return self._explained(result)

    def _explained(self, result: QuantizeResult) -> QuantizeResult:
        """Return the result with its nodes, or with a note why there are none."""
        if result.gated.winner.engine != FIRST_ENGINE:
            return result  # the profiler of another engine sees other nodes
        choice = choice_of(result.gated.winner.name, result.gated.findings)
        try:
            nodes = why_not(result.artifact, self._meter, self._feeds, choice=choice)
        except PassError as error:
            told = f"Nodes were not timed: {first_line(error)}"
            return replace(result, notes=(*result.notes, told))
        return replace(result, nodes=nodes)

    def _notes(self) -> list[str]:
        notes = [*self._maker.notes]
        if self._maker.was_cut:
            notes.append(
                f"The search ended after {self._options.most_minutes:g} minutes, before everything"
                " was tried; the same command with more minutes goes on."
            )
        if self._cache.has_reused:
            notes.append(
                "An earlier run of this request was continued: what it had made and measured was"
                " not measured again. --fresh begins anew."
            )
        return notes


def _open_cache(
    baseline: Artifact, workload: Workload, feeds: Iterable[Feeds], options: QuantizeOptions
) -> Cache:
    """Open the cache of everything that rests on this model, these feeds and this seed."""
    evaluation = options.feeds.evaluation
    about = [
        digest(baseline),
        baseline.task,
        digest_feeds(chain(feeds, workload.check_feeds())),
        digest_file(evaluation) if evaluation else None,
        [*options.feeds.feed, *options.feeds.shape],
        options.seed,
        options.plan.threads,
    ]
    return Cache.of_run(about, cache_root() / "quantize", is_fresh=options.is_fresh)


def _write(
    candidate: Candidate, numbers: Mapping[str, Any], output: Path, options: QuantizeOptions
) -> None:
    artifact = cast(Artifact, candidate.artifact)
    evidence = Step("measure", {}, options.seed, numbers)
    save_onnx(artifact.then(artifact.payload, evidence, stage="onnx"), output)


def _search(options: QuantizeOptions, *, has_task: bool) -> Search:
    """Return what is tried.

    Splits aim a little higher than the budget, as predictions err. What SQNR a task's metric needs
    is not known beforehand, so a ladder of targets is tried.
    """
    least_db = options.budget.least_sqnr_db if options.budget else LEAST_SQNR_DB
    steps = TASK_STEPS_DB if has_task else (MARGIN_DB,)
    targets = tuple(least_db + step for step in steps)
    most_seconds = None if options.most_minutes is None else 60 * options.most_minutes
    return Search(
        options.mode,
        _scheme(options),
        targets,
        most_seconds=most_seconds,
        most_bytes=options.most_bytes,
    )


def _scheme(options: QuantizeOptions) -> Scheme:
    if options.isa is None:
        return machine_scheme()
    if options.isa not in SCHEMES:
        raise unknown_name("instruction set", options.isa, SCHEMES)
    return SCHEMES[options.isa]


def _elsewhere(winner: Artifact, options: QuantizeOptions) -> list[str]:
    """Return what the user should know about other processors than this one."""
    here, notes = machine_scheme(), []
    if _scheme(options) is not here:
        told = _scheme(options).told
        notes.append(f"Quantized for {told}, but timed and judged on this one: {here.told}.")
    saturating = {each.name: each for each in find_saturation(winner.payload) if each.is_possible}
    if saturating:
        few = [*saturating][:NAMED_LAYERS]
        more = f" and {len(saturating) - len(few)} more" if len(saturating) > len(few) else ""
        notes.append(
            f"On x86 without VNNI the sums of {', '.join(few)}{more} can saturate, which changes"
            " results: --isa avx2 makes a file that is right there too."
        )
    return notes


def _asked(options: QuantizeOptions) -> GateOptions:
    return GateOptions(
        options.plan,
        options.budget,
        options.samples,
        options.least_speedup,
        options.most_bytes,
        options.seed,
    )


def _given_up(artifact: Artifact) -> list[str]:
    """Return what the passes gave up or had to leave float, in words."""
    notes = []
    for step in artifact.history:
        for name, reason in step.numbers.get("given_up", {}).items():
            notes.append(f"{step.name}: the step {name} was left out: {reason}")
        for part, told in step.numbers.get("scheme", {}).items():
            if unbounded := told.get("unbounded"):
                few = ", ".join(unbounded[:NAMED_LAYERS])
                notes.append(
                    f"{part}: {len(unbounded)} tensors held infinities or NaN ({few}): what touches"
                    " them stays float."
                )
            notes += [
                f"{part}: tried and given up: {reason}" for reason in told.get("given_up", ())
            ]
    return notes
