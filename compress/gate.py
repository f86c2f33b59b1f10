"""The gate: a candidate is shipped only when it is shown to be faster and stays within the budget.

Candidates come in rounds. They are ranked by the quick meter and judged on validation data in that
order (one whose outputs are further from FP32's than those of a candidate outside the budget is not
judged), so that the best so far is known after every round. At the end the first few within the
budget meet the FP32 baseline in a full contest. The fastest of those whose interval lies above the
least speed-up is judged once more, on test data, and shipped. Where none is faster, a smaller one
that is shown to be as fast is taken, else FP32. Every candidate says why it is not the answer.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from aigc_compress.bench.latency import Contest, Contestant, LatencyPlan, run_contest
from aigc_compress.bench.statistics import RatioInterval

from .artifact import Artifact, save_onnx
from .budget import Budget, Judgement, judge_quality
from .cache import Cache, digest
from .closeness import lowest_agreement_db
from .engines import get_engine
from .errors import AigcCompressError, InputFileError, StoppedError, first_line
from .meter import Meter, Speedup
from .task import OnStep, Quality, Runner, Split
from .workload import Workload

__all__ = ["FIRST_ENGINE", "Candidate", "Finding", "Gate", "GateOptions", "Gated"]

FIRST_ENGINE = "ort"
FINALISTS = 3
NEAR_DB = 1.0  # how exactly SQNR ranks the harm that schemes do to a task's metric
# Where nothing is faster, a file of at most this share of the size is worth having if the interval
# of its speed-up lies above this.
SMALLER = 0.9
AS_FAST = 0.95


@dataclass(frozen=True)
class Candidate:
    """An ONNX artifact that competes to be the answer, or the reason why it could not be made.

    It competes on an engine, a name in `engines.ENGINES`; the baseline is on ONNX Runtime.
    """

    name: str
    artifact: Artifact | None = None
    failure: str = ""
    engine: str = FIRST_ENGINE


@dataclass(frozen=True)
class Finding:
    """What the gate found out about one candidate; what it did not need to know is None.

    Attributes:
        name: of the candidate.
        size_bytes: of its graph.
        agreement_db: lowest SQNR of an output against FP32 on the check feeds.
        quick: speed-up by the quick meter.
        speedup: speed-up in the full contest.
        validation: quality on validation data.
        reason: why it was not shipped; empty for the one that was.
        is_outside: whether it was judged, or is assumed, to be outside the budget.
    """

    name: str
    size_bytes: int | None = None
    agreement_db: float | None = None
    quick: Speedup | None = None
    speedup: RatioInterval | None = None
    validation: Judgement | None = None
    reason: str = ""
    is_outside: bool = False

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        speed = self.speedup or self.quick
        quality = self.validation.document() if self.validation else None
        return {
            "name": self.name,
            "size_bytes": self.size_bytes,
            "agreement_db": self.agreement_db,
            "speedup": None if speed is None else _speed_document(speed),
            "measured": "contest" if self.speedup else "quick" if self.quick else None,
            "quality": quality and {key: quality[key] for key in ("metric", "value", "within")},
            "reason": self.reason,
        }


@dataclass(frozen=True)
class GateOptions:
    """What the user asks of the answer, and how it is measured.

    Attributes:
        plan: of the full contest.
        budget: allowed drop; None takes the metric's default.
        samples: samples of a quality measurement; None takes the task's default.
        least_speedup: what the lower end of the speed-up's interval must exceed.
        most_bytes: largest size of the file; None: any.
        seed: of feeds and statistics.
    """

    plan: LatencyPlan = field(default_factory=LatencyPlan)
    budget: Budget | None = None
    samples: int | None = None
    least_speedup: float = 1.0
    most_bytes: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Gated:
    """The answer with its evidence.

    Attributes:
        winner: what is shipped; the fallback's name is that of the baseline.
        is_fallback: whether no candidate passed.
        contest: of the baseline and the finalists, the baseline first.
        speedup: of the winner over the baseline.
        judgement: of the winner on test data.
        findings: of all candidates, in the order in which they were given.
        index: of the winner among the contest's timings.
    """

    winner: Candidate
    is_fallback: bool
    contest: Contest
    speedup: RatioInterval
    judgement: Judgement
    findings: tuple[Finding, ...]
    index: int


class Gate:
    """Takes candidates in rounds, knows the best so far, and decides at the end."""

    def __init__(
        self,
        baseline: Candidate,
        workload: Workload,
        meter: Meter,
        options: GateOptions,
        *,
        cache: Cache | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        """Prepare to compare with a baseline.

        Args:
            baseline: FP32; it is also what quality is compared with.
            workload: feeds and quality.
            meter: for the first ranking.
            options: see GateOptions.
            cache: what was measured before the run was killed; None: nothing.
            on_step: called with (done, total) during measurements.
        """
        self._baseline, self._workload, self._meter = baseline, workload, meter
        self._options, self._on_step = options, on_step
        self._cache = cache or Cache()
        self._feeds = workload.timing_feeds(batch=1, length=1, seed=options.seed)
        self._reference = self._runner(baseline)
        self._known: dict[Split, Quality] = {}
        self._samples = workload.check_feeds()
        self._wanted = [self._reference.run(each) for each in self._samples]
        self._findings: list[Finding] = []
        self._by_name: dict[str, Candidate] = {}
        self._by_graph: dict[tuple[str, str], Candidate] = {}

    def admit(self, candidates: Sequence[Candidate]) -> None:
        """Rank a round of candidates, and judge until the fastest within the budget is known."""
        self._by_name |= {each.name: each for each in candidates}
        self._findings += self._ranked(candidates)
        self._judge_fastest(1)

    def withdraw(self, engine: str, reason: str) -> None:
        """Take what competes on an engine out of the race, whatever it is like."""
        self._findings = [
            each
            if each.reason or self._by_name[each.name].engine != engine
            else replace(each, reason=reason)
            for each in self._findings
        ]

    @property
    def in_the_race(self) -> list[Candidate]:
        """Return the candidates that are not known to be outside the budget, the first ones first.

        On another engine one that is slow here may be fast.
        """
        return [
            self._by_name[each.name]
            for each in self._findings
            if self._by_name[each.name].artifact is not None and not each.is_outside
        ]

    def finding(self, name: str) -> Finding:
        """Return what is known of an admitted candidate so far."""
        return next(each for each in self._findings if each.name == name)

    @property
    def best(self) -> tuple[Candidate, Finding] | None:
        """Return the fastest so far that is within the budget and faster by the quick meter."""
        for index in _fastest_first(self._findings):
            found = self._findings[index]
            is_faster = found.quick is not None and found.quick.low > self._options.least_speedup
            if found.validation is not None and is_faster:
                return self._by_name[found.name], found
        return None

    def judge(self, candidate: Candidate, split: Split) -> Judgement:
        """Return a candidate's quality beside that of FP32, which is measured once per split."""
        has_own = self._workload.has_baseline_quality
        if has_own and split not in self._known:
            self._known[split] = self._quality(self._baseline, split)
        is_reference = candidate is self._baseline and has_own
        quality = self._known[split] if is_reference else self._quality(candidate, split)
        return judge_quality(quality, self._known.get(split), self._options.budget)

    def decide(self) -> Gated:
        """Return the fastest candidate that may be shipped, else the baseline."""
        self._judge_fastest(FINALISTS)
        findings = self._findings
        running = _fastest_first(findings)
        for index in running[FINALISTS:]:
            findings[index] = replace(findings[index], reason="faster ones were within budget")
        finalists = [self._by_name[findings[index].name] for index in running[:FINALISTS]]
        contest = self._contest([self._baseline, *finalists])
        places = {each.name: place for place, each in enumerate(finalists, start=1)}
        timed = [_timed(each, contest, places.get(each.name)) for each in findings]
        return self._decided(timed, self._by_name, contest, places)

    def _judge_fastest(self, wanted: int) -> None:
        """Judge candidates, the fastest first, until so many are within the budget."""
        within = 0
        for index in _fastest_first(self._findings):
            finding = self._findings[index]
            if within == wanted:
                return
            if finding.validation is None:
                finding = self._findings[index] = self._looked_at(finding)
            within += not finding.reason

    def _looked_at(self, finding: Finding) -> Finding:
        """Judge a candidate unless one that is clearly closer to FP32 was outside the budget.

        Where a graph for another engine rounds, graphs for this one do not, so each engine's count.
        """
        engine = self._by_name[finding.name].engine
        failed_db = max(
            (
                each.agreement_db
                for each in self._findings
                if each.is_outside
                and each.agreement_db is not None
                and self._by_name[each.name].engine == engine
            ),
            default=-math.inf,
        )
        if finding.agreement_db is not None and finding.agreement_db <= failed_db - NEAR_DB:
            return replace(finding, reason=_further(finding, failed_db), is_outside=True)
        return self._validated(finding, self._by_name[finding.name])

    def _ranked(self, candidates: Sequence[Candidate]) -> list[Finding]:
        """Time new graphs with the quick meter, and refuse the slower and the too large."""
        new: list[Candidate] = []
        for each in candidates:
            if each.artifact is not None:
                first = self._by_graph.setdefault(_key(each), each)
                if first is each:
                    new.append(each)
        assert self._baseline.artifact is not None
        graphs = [cast(Artifact, each.artifact) for each in new]
        engines = _engines(new)
        speeds = (
            self._meter.compare(self._baseline.artifact, graphs, self._feeds, engines)
            if new
            else ()
        )
        quick = dict(zip((each.name for each in new), speeds, strict=True))
        return [self._first_look(each, quick.get(each.name)) for each in candidates]

    def _first_look(self, candidate: Candidate, quick: Speedup | None) -> Finding:
        if candidate.artifact is None:
            return Finding(candidate.name, reason=candidate.failure)
        size, most = self._size(candidate), self._options.most_bytes
        if quick is None:
            same = self._by_graph[_key(candidate)]
            return Finding(candidate.name, size, reason=f"the same graph as {same.name}")
        reason = f"{quick.verdict}" if quick.verdict == "slower" else ""
        if most is not None and size > most:
            reason = f"{size} bytes, more than {most}"
        return Finding(candidate.name, size, self._agreement(candidate), quick, reason=reason)

    def _agreement(self, candidate: Candidate) -> float:
        runner = self._runner(candidate)
        found = [runner.run(feeds) for feeds in self._samples]
        return lowest_agreement_db(self._wanted, found)

    def _validated(self, finding: Finding, candidate: Candidate) -> Finding:
        try:
            judgement = self.judge(candidate, "validation")
        except (InputFileError, StoppedError):  # no candidate is to blame
            raise
        except AigcCompressError as error:
            return replace(finding, reason=f"it could not be judged: {first_line(error)}")
        reason = "" if judgement.within else f"outside the budget: {_told(judgement)}"
        is_outside = not judgement.within
        return replace(finding, validation=judgement, reason=reason, is_outside=is_outside)

    def _quality(self, candidate: Candidate, split: Split) -> Quality:
        """Measure; details cost time, and are for the report, which is on test data."""
        options, with_details = self._options, split == "test"
        assert candidate.artifact is not None
        assert self._baseline.artifact is not None

        def measure() -> Quality:
            is_reference = candidate is self._baseline
            return self._workload.measure(
                self._reference if is_reference else self._runner(candidate),
                self._reference,
                samples=options.samples,
                seed=options.seed,
                on_step=self._on_step,
                split=split,
                with_details=with_details,
            )

        graphs = [digest(each) for each in (candidate.artifact, self._baseline.artifact)]
        about = ["quality", *graphs, split, options.samples, options.seed, *_engines([candidate])]
        return self._cache.value(about, Quality, measure)

    def _runner(self, candidate: Candidate) -> Runner:
        assert candidate.artifact is not None
        engine = get_engine(candidate.engine)
        return engine.load(candidate.artifact, threads=os.cpu_count() or 1)

    def _contest(self, contestants: Sequence[Candidate]) -> Contest:
        """Time FP32 and the finalists; FP32 takes part twice where it is alone, as A/A."""
        graphs = [digest(cast(Artifact, each.artifact)) for each in contestants]
        about = ["contest", *graphs, asdict(self._options.plan), *_engines(contestants)]
        return self._cache.value(about, Contest, lambda: self._run_contest(contestants))

    def _run_contest(self, contestants: Sequence[Candidate]) -> Contest:
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for index, each in enumerate(contestants):
                assert each.artifact is not None
                path = Path(folder) / f"{index}.onnx"
                save_onnx(each.artifact, path)
                files.append(Contestant(path, each.engine))
            if len(files) == 1:
                files.append(replace(files[0], decides=False))
            return run_contest(files, self._feeds, self._options.plan, on_step=self._on_step)

    def _decided(
        self,
        findings: list[Finding],
        by_name: dict[str, Candidate],
        contest: Contest,
        places: dict[str, int],
    ) -> Gated:
        """Take the fastest that is shown to be faster; it must hold on test data too."""
        for index in _fastest_first(findings):
            finding = findings[index]
            if finding.speedup is None:
                continue
            if finding.speedup.low <= self._options.least_speedup:
                findings[index] = replace(finding, reason=_not_faster(finding, self._options))
                continue
            judgement = self.judge(by_name[finding.name], "test")
            if not judgement.within:
                reason = f"outside the budget on test data: {_told(judgement)}"
                findings[index] = replace(finding, reason=reason)
                continue
            told = [_beaten(each, finding) for each in findings]
            place = places[finding.name]
            winner = by_name[finding.name]
            return Gated(winner, False, contest, finding.speedup, judgement, (*told,), place)
        return self._smaller(findings, by_name, contest, places) or self._fallback(
            findings, contest, places
        )

    def _smaller(
        self,
        findings: list[Finding],
        by_name: dict[str, Candidate],
        contest: Contest,
        places: dict[str, int],
    ) -> Gated | None:
        """Take the smallest that is shown to be as fast as FP32, where it is worth its while."""
        if self._options.least_speedup > 1:
            return None
        most_bytes = SMALLER * self._size(self._baseline)
        for finding in sorted(findings, key=lambda each: each.size_bytes or 0):
            if finding.speedup is None or finding.speedup.low <= AS_FAST:
                continue
            if finding.speedup.verdict == "slower":  # by little, but shown to be
                continue
            if finding.size_bytes is None or finding.size_bytes > most_bytes:
                continue
            judgement = self.judge(by_name[finding.name], "test")
            if judgement.within:
                told = [replace(each, reason="") if each is finding else each for each in findings]
                place, winner = places[finding.name], by_name[finding.name]
                return Gated(winner, False, contest, finding.speedup, judgement, (*told,), place)
        return None

    def _fallback(self, findings: list[Finding], contest: Contest, places: dict[str, int]) -> Gated:
        judgement = self.judge(self._baseline, "test")
        one = contest.speedup(1) if not places else RatioInterval(1.0, 1.0, 1.0)
        return Gated(self._baseline, True, contest, one, judgement, (*findings,), 0)

    def _size(self, candidate: Candidate) -> int:
        assert candidate.artifact is not None
        return int(candidate.artifact.payload.ByteSize())


def _key(candidate: Candidate) -> tuple[str, str]:
    return digest(cast(Artifact, candidate.artifact)), candidate.engine


def _engines(candidates: Sequence[Candidate]) -> list[str]:
    """Return who runs on what; nothing where all are on the first, as was the only way once."""
    engines = [each.engine for each in candidates]
    return engines if any(engine != FIRST_ENGINE for engine in engines) else []


def _fastest_first(findings: Sequence[Finding]) -> list[int]:
    """Return the indices of what is still in the race, the fastest first."""

    def ratio(index: int) -> float:
        speed = findings[index].speedup or findings[index].quick
        return speed.ratio if speed else 0.0

    running = [index for index, each in enumerate(findings) if not each.reason]
    return sorted(running, key=ratio, reverse=True)


def _timed(finding: Finding, contest: Contest, place: int | None) -> Finding:
    return finding if place is None else replace(finding, speedup=contest.speedup(place))


def _further(finding: Finding, failed_db: float) -> str:
    return (
        f"outside the budget, it is assumed: {finding.agreement_db:.1f} dB to FP32, and one with"
        f" {failed_db:.1f} dB was outside"
    )


def _not_faster(finding: Finding, options: GateOptions) -> str:
    assert finding.speedup is not None
    if options.least_speedup > 1:
        return f"not shown to be {options.least_speedup:g} times faster"
    return finding.speedup.verdict


def _beaten(finding: Finding, winner: Finding) -> Finding:
    if finding.reason or finding.name == winner.name:
        return finding
    is_faster = finding.speedup is not None and finding.speedup.verdict == "faster"
    why = f"{winner.name} is faster" if is_faster or not finding.speedup else None
    return replace(finding, reason=why or cast(RatioInterval, finding.speedup).verdict)


def _told(judgement: Judgement) -> str:
    quality, baseline = judgement.quality, judgement.baseline
    if baseline is None:
        return f"{quality.metric} {quality.value:.1f}, needed {judgement.allowed:.1f}"
    drop = quality.drop_from(baseline)
    return f"{quality.metric} worse by {drop:.3g}, allowed {judgement.allowed:.3g}"


def _speed_document(speed: Speedup) -> dict[str, Any]:
    if isinstance(speed, RatioInterval):
        return asdict(speed)
    return {"ratio": speed.ratio, "low": speed.low, "high": speed.high}
