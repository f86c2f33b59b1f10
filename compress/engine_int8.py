"""Which INT8 graph an engine with a compiler gets: ranges and float layers, chosen by the quality.

The ways to end the ranges of activations are judged on validation data, the best SQNR first. Where
all are outside the budget, layers stay float, the most harmful ones first, as few as bring it
within: such an engine is as fast with any range, and slower with every layer on floats. The judge
is the task's metric, or SQNR, of the very graph that the engine gets, run by ONNX Runtime on the
CPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .artifact import Artifact
from .budget import Budget, Judgement, judge_quality
from .engines.ort import OrtSession
from .errors import PassError
from .passes import Context, OpenVinoConfig, TensorRtConfig
from .passes import openvino as for_openvino
from .passes import tensorrt as for_tensorrt
from .passes.borders import layer_names
from .passes.quantize.config import RangeMethod
from .pipeline import run_passes
from .task import Quality, Runner, Split
from .workload import Workload

__all__ = [
    "INT8_PASSES",
    "Attempt",
    "Found",
    "Int8Choice",
    "Int8Config",
    "Int8Judge",
    "Judge",
    "choose_int8",
    "search_int8",
]

Judge = Callable[[Artifact, Split], Judgement]

Int8Config = TensorRtConfig | OpenVinoConfig
# The pass that writes INT8 with settings of this type, and the operators that it makes integer.
WRITERS: Mapping[type[Int8Config], tuple[str, tuple[str, ...]]] = {
    TensorRtConfig: ("tensorrt", for_tensorrt.LAYERS),
    OpenVinoConfig: ("openvino", for_openvino.LAYERS),
}
INT8_PASSES = tuple(name for name, _ in WRITERS.values())
MOST_DROPPED = 8  # layers that are tried to be on integers again after all
METHODS: tuple[RangeMethod, ...] = (
    *("minmax", "percentile-99.999", "percentile-99.99", "percentile-99.9", "mse", "entropy"),
)


@dataclass(frozen=True)
class Attempt:
    """A graph with its settings, and its quality on validation data."""

    config: Int8Config
    graph: Artifact
    judgement: Judgement

    def document(self) -> dict[str, Any]:
        """Return settings and quality as JSON."""
        return {
            "ranges": self.config.ranges,
            "keep_float": list(self.config.keep_float),
            "value": self.judgement.quality.value,
            "within": self.judgement.within,
        }


@dataclass(frozen=True)
class Int8Choice:
    """The answer, within the budget or the best there is.

    Attributes:
        graph: what TensorRT gets.
        judgement: on test data.
        attempts: all that were judged, in order.
    """

    graph: Artifact
    judgement: Judgement
    attempts: tuple[Attempt, ...]

    def document(self) -> dict[str, Any]:
        """Return the quality on test data, and what was tried on validation data, as JSON."""
        told = self.judgement.document()
        keys = ("metric", "higher_is_better", "baseline", "value", "drop", "budget", "within")
        return {
            **{key: told[key] for key in (*keys, "samples", "split", "spread")},
            "of": "the graph in ONNX Runtime on the CPU",
            "tried": [each.document() for each in self.attempts],
        }


class Int8Judge:
    """Judges graphs by a workload's quality; FP32's own is measured once per split."""

    def __init__(
        self,
        folded: Artifact,
        workload: Workload,
        context: Context,
        *,
        budget: Budget | None = None,
        samples: int | None = None,
    ) -> None:
        """Take FP32, feeds and quality, and the budget; None: the metric's default."""
        self._workload, self._context = workload, context
        self._budget, self._samples = budget, samples
        self._reference = _runner(folded)
        self._baselines: dict[Split, Quality] = {}

    def __call__(self, graph: Artifact, split: Split) -> Judgement:
        """Return a graph's quality on a split beside FP32's."""
        if self._workload.has_baseline_quality and split not in self._baselines:
            self._baselines[split] = self._quality(self._reference, split)
        quality = self._quality(_runner(graph), split)
        return judge_quality(quality, self._baselines.get(split), self._budget)

    def _quality(self, runner: Runner, split: Split) -> Quality:
        return self._workload.measure(
            runner,
            self._reference,
            samples=self._samples,
            seed=self._context.seed,
            on_step=self._context.on_step,
            split=split,
            with_details=False,
        )


def choose_int8(
    folded: Artifact, config: TensorRtConfig, context: Context, judge: Judge, *, searches: bool
) -> Int8Choice:
    """Return the INT8 graph for TensorRT.

    Args:
        folded: the FP32 graph.
        config: what the user asked for.
        context: feeds and calibration.
        judge: tells what is within the budget.
        searches: whether ranges and float layers are chosen; else they are those of `config`.

    Raises:
        PassError: the graph cannot be brought to INT8.
    """
    if not searches:
        graph = _made(folded, config, context)
        return Int8Choice(graph, judge(graph, "test"), ())
    found = search_int8(folded, config, context, judge)
    return Int8Choice(found.best.graph, judge(found.best.graph, "test"), found.attempts)


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        best: the attempt within the budget with the fewest float layers, else the closest.
        attempts: all, in order.
        was_cut: whether the time was up before everything was tried.
    """

    best: Attempt
    attempts: tuple[Attempt, ...]
    was_cut: bool


def search_int8(
    folded: Artifact,
    config: Int8Config,
    context: Context,
    judge: Judge,
    *,
    is_late: Callable[[], bool] = lambda: False,
) -> Found:
    """Choose ranges and float layers on validation data.

    Args:
        folded: the FP32 graph.
        config: what the user asked for.
        context: feeds and calibration.
        judge: tells what is within the budget.
        is_late: whether the time is up; one attempt is made in any case.

    Raises:
        PassError: the graph cannot be brought to INT8.
    """
    search = _Search(folded, config, context, judge, is_late)
    search.try_ranges()
    if not search.is_within:
        search.try_float_layers()
    return Found(search.best, (*search.attempts,), search.was_cut)


class _Search:
    """Attempts so far, and how to make the next."""

    def __init__(
        self,
        folded: Artifact,
        config: Int8Config,
        context: Context,
        judge: Judge,
        is_late: Callable[[], bool],
    ) -> None:
        self._folded, self._config, self._context, self._judge = folded, config, context, judge
        self._is_late, self.was_cut = is_late, False
        self.attempts: list[Attempt] = []

    @property
    def is_within(self) -> bool:
        """Whether one is within the budget."""
        return any(each.judgement.within for each in self.attempts)

    @property
    def best(self) -> Attempt:
        """Return the one within the budget with the fewest float layers, else the closest."""
        within = [each for each in self.attempts if each.judgement.within]
        return min(within, key=_float_layers) if within else max(self.attempts, key=_closeness)

    def try_ranges(self) -> None:
        """Judge the ways to end ranges, the best SQNR first, until one is within the budget."""
        made: list[tuple[Int8Config, Artifact]] = []
        for method in METHODS:
            if made and self._is_late():
                self.was_cut = True
                break
            config = self._config.model_copy(update={"ranges": method})
            made.append((config, _made(self._folded, config, self._context)))
        for config, graph in sorted(made, key=lambda each: -_sqnr_db(each[1])):
            if self._must_end() or self._try(config, graph):
                return

    def try_float_layers(self) -> None:
        """Find by bisection how many of the most harmful layers to leave float, then which not."""
        config = max(self.attempts, key=_closeness).config
        if self._must_end():
            return
        harmful = self._most_harmful_first(config)
        too_few, enough = 0, len(harmful)
        while enough - too_few > 1 and not self._must_end():
            count = (too_few + enough) // 2
            is_within = self._try_float(config, harmful[:count])
            too_few, enough = (too_few, count) if is_within else (count, enough)
        kept = list(harmful[:enough]) if self.is_within else []
        for name in kept[-2 : -2 - MOST_DROPPED : -1]:  # without the last it was outside
            fewer = [each for each in kept if each != name]
            if self._must_end():
                return
            if fewer and self._try_float(config, fewer):
                kept = fewer

    def _most_harmful_first(self, config: Int8Config) -> Sequence[str]:
        """Return the layers by the SQNR of the graph in which each is the only one in INT8.

        Those that the user leaves float are not among them; when it is late, none is, as half an
        order says nothing.
        """
        layers = layer_names(self._folded.payload, WRITERS[type(config)][1])
        harm: dict[str, float] = {}
        for done, name in enumerate(layers):
            if self._must_end():
                return ()
            self._context.on_step(done, len(layers))
            if name in config.keep_float:
                continue
            others = tuple(each for each in layers if each != name)
            alone = config.model_copy(update={"keep_float": others})
            try:
                made = _made(self._folded, alone, self._context)
            except PassError:  # the layer has no INT8 form, so it stays float anyhow
                continue
            harm[name] = _sqnr_db(made)
        return sorted(harm, key=lambda each: harm[each])

    def _must_end(self) -> bool:
        """Whether the time is up; something is judged in any case."""
        if not self.attempts:
            return False
        self.was_cut = self.was_cut or self._is_late()
        return self.was_cut

    def _try_float(self, config: Int8Config, layers: Sequence[str]) -> bool:
        kept = config.model_copy(update={"keep_float": (*config.keep_float, *layers)})
        return self._try(kept, _made(self._folded, kept, self._context))

    def _try(self, config: Int8Config, graph: Artifact) -> bool:
        judgement = self._judge(graph, "validation")
        self.attempts.append(Attempt(config, graph, judgement))
        return judgement.within


def _made(folded: Artifact, config: Int8Config, context: Context) -> Artifact:
    return run_passes(folded, [(WRITERS[type(config)][0], config)], context)


def _sqnr_db(graph: Artifact) -> float:
    return float(graph.history[-1].numbers["sqnr_db"])


def _closeness(attempt: Attempt) -> float:
    """Return the quality, higher is better."""
    quality = attempt.judgement.quality
    value = quality.value if quality.higher_is_better else -quality.value
    return -math.inf if math.isnan(value) else value


def _float_layers(attempt: Attempt) -> tuple[int, float]:
    return len(attempt.config.keep_float), -_closeness(attempt)


def _runner(artifact: Artifact) -> Runner:
    return OrtSession(artifact, threads=os.cpu_count() or 1)
