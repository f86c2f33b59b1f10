"""Candidates on other engines than ONNX Runtime: its graphs there, and INT8 as each wants it.

What is made for ONNX Runtime has integer operators that stand one by one. OpenVINO and TensorRT
join operators themselves, and want borders before layers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .artifact import Artifact
from .cache import Cache
from .engine_int8 import INT8_PASSES, Int8Config, Judge, search_int8
from .engines import ENGINES, get_engine
from .errors import NotOnThisMachineError, PassError, UsageError, first_line
from .gate import FIRST_ENGINE, Candidate
from .passes import PASSES, Context, LowerConfig, OpenVinoConfig, TensorRtConfig
from .pipeline import run_passes
from .preparing import fold
from .schemes import Scheme
from .task import Feeds

__all__ = ["AUTO_ENGINES", "EngineCandidates", "engine_notes", "other_engines"]

AUTO_ENGINES = "auto"


def other_engines(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the engines that compete with ONNX Runtime, and what is to be said of the missing.

    Args:
        names: in `engines.ENGINES`, or `auto` alone for every engine of ONNX files that is here.

    Raises:
        UsageError: there is no engine of that name, or it does not run ONNX files.
        NotOnThisMachineError: one that was named cannot run here.
    """
    if names != (AUTO_ENGINES,):
        for name in names:
            if get_engine(name).stage != "onnx":
                raise UsageError(f"{name} runs no ONNX files: name another --engine.")
        return tuple(name for name in dict.fromkeys(names) if name != FIRST_ENGINE), []
    rivals = [  # for latency, as single calls are what is timed
        name
        for name, each in ENGINES.items()
        if each.stage == "onnx" and not name.endswith("-throughput")
    ]
    found = {name: ENGINES[name].availability() for name in rivals if name != FIRST_ENGINE}
    present = tuple(name for name, each in found.items() if each.is_available)
    absent = ", ".join(name for name in found if name not in present)
    return present, [f"Engines that are not here did not compete: {absent} (see doctor)."]


@dataclass(frozen=True)
class EngineCandidates:
    """Makes the candidates of other engines.

    Attributes:
        engines: their names.
        baseline: the FP32 graph.
        context: feeds, calibration, meter.
        feeds: of a timed call.
        judge: tells whether a graph is within the budget.
        limits: what the judge goes by; what was made under others is made again.
        scheme: of the processor that the answer is for.
        cache: what was made before the run was killed.
        is_late: whether the time is up.
    """

    engines: tuple[str, ...]
    baseline: Artifact
    context: Context
    feeds: Feeds
    judge: Judge
    limits: Sequence[Any]
    scheme: Scheme
    cache: Cache
    is_late: Callable[[], bool]

    def made(self, in_the_race: Sequence[Candidate]) -> Iterator[Candidate]:
        """Yield FP32 and what is in the race on every engine, and INT8 as that wants it."""
        graphs = [Candidate("FP32", self.baseline), *in_the_race]
        native: dict[str, Candidate] = {}
        for engine in self.engines:
            yield from (self._on(engine, each) for each in graphs)
            dialect = ENGINES[engine].int8_pass
            if dialect in INT8_PASSES:
                if dialect not in native:
                    native[dialect] = self._in_dialect(dialect)
                yield self._on(engine, native[dialect])

    def _on(self, engine: str, candidate: Candidate) -> Candidate:
        name, failure = f"{candidate.name} on {engine}", candidate.failure
        try:
            if candidate.artifact is not None:
                get_engine(engine).load(candidate.artifact, threads=1).run(self.feeds)
        except (NotOnThisMachineError, PassError) as error:
            failure = first_line(error)
        artifact = None if failure else candidate.artifact
        return Candidate(name, artifact, failure, engine)

    def _in_dialect(self, dialect: str) -> Candidate:
        name = f"INT8 for {dialect}"
        about = ["native", dialect, self.scheme.reduces_range, *self.limits]
        try:
            graph = self.cache.known_artifact(self.baseline, about)
            if graph is None and self.is_late():
                return Candidate(name, failure="the time was up")
            return Candidate(name, graph or self._searched(dialect, about))
        except (NotOnThisMachineError, PassError) as error:
            return Candidate(name, failure=first_line(error))

    def _searched(self, dialect: str, about: Sequence[Any]) -> Artifact:
        def take(name: str, before: Artifact, settings: Mapping[str, Any]) -> Artifact:
            return run_passes(before, [(name, PASSES[name].config(**settings))], self.context)

        base = fold(self.baseline, take)
        config: Int8Config = TensorRtConfig(precision="int8")
        if dialect == "openvino":
            config = OpenVinoConfig(reduce_range=self.scheme.reduces_range)
            lowering = LowerConfig(precision="integer", engine="openvino")
            base = run_passes(base, [("lower", lowering)], self.context)
        found = search_int8(base, config, self.context, self.judge, is_late=self.is_late)
        graph = found.best.graph
        if not found.was_cut:
            self.cache.keep_artifact(self.baseline, about, graph)
        return graph


def engine_notes(winner: Candidate) -> list[str]:
    """Return what the user should know about an answer for another engine than ONNX Runtime."""
    if winner.engine == FIRST_ENGINE:
        return []
    notes = [
        f"The file is for {winner.engine}: its speed and quality were measured there. Its nodes are"
        " explained for ONNX Runtime alone."
    ]
    for step in cast(Artifact, winner.artifact).history:
        if step.name in INT8_PASSES and step.config["keep_float"]:
            kept = ", ".join(step.config["keep_float"])
            notes.append(f"Left float, so that the quality stays within the budget: {kept}.")
    return notes
