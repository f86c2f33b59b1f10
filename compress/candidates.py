"""The candidates that compete to be the answer: FP32 cleaned, and quantized in several ways.

They come in rounds, so that later ones build on what the gate found out about earlier ones: whole
schemes first, then the closest again with their accuracy repaired where they are outside the
budget, then splits between integers and floats at a few targets of SQNR, then splits between the
last that was outside the budget and the first within, then the last outside repaired. Where the
file must not be large, what is too large comes once more with its floats stored as INT8.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .artifact import Artifact
from .cache import Cache, digest
from .errors import AigcCompressError, InputFileError, PassError, StoppedError, first_line
from .gate import Candidate
from .machine import machine_scheme
from .passes import PASSES, Context, Mode, QuantizeConfig
from .passes.operators import RECURRENT, all_nodes, with_node_names
from .passes.partition import Split
from .passes.quantize.repairs import repair_floats, repairs
from .passes.quantize.static import ANCHORS
from .passes.recurrent import quantize_recurrent
from .pipeline import run_passes
from .preparing import fold, lower, spell
from .refine import Sensitivity, measure_sensitivity, node_operators, with_only
from .schemes import Scheme
from .splitting import Look, Splitting
from .task import Feeds

__all__ = ["FOLDED", "Maker", "Search"]

FOLDED = "FP32, folded"
LOWERED = "lowered"
SPELLED = "spelled for integers"
REFINING_ROUNDS = 2
REPAIRS = 2  # variants of repair that are tried of a scheme
MUCH_SLOWER = 0.7
GAIN_DB = 1.0  # that a repair must bring to be kept


@dataclass(frozen=True)
class Search:
    """What is tried, and how long.

    Attributes:
        mode: auto tries static and dynamic quantization and both together; the others alone.
        scheme: of the processor that the answer is for.
        targets_db: SQNR that splits between integers and floats aim at first, rising.
        sensitivity_seconds: most time for measuring the harm of nodes, per graph.
        most_seconds: time after which no further candidate is made; None: no limit.
        most_bytes: largest size of the file; None: any.
    """

    mode: Mode = "auto"
    scheme: Scheme = field(default_factory=machine_scheme)
    targets_db: tuple[float, ...] = (20.0,)
    sensitivity_seconds: float = 60.0
    most_seconds: float | None = None
    most_bytes: int | None = None


@dataclass(frozen=True)
class _Scheme:
    """A scheme for a whole graph: its candidate's name, what it begins with, its settings."""

    name: str
    base: Artifact
    settings: Mapping[str, Any]
    made: Candidate

    @property
    def is_static(self) -> bool:
        """Whether parts of the graph can be chosen to be integer."""
        if self.made.artifact is None:
            return False
        return "static" in self.made.artifact.history[-1].numbers["scheme"]


class Maker:
    """Makes candidates round by round.

    Attributes:
        was_cut: whether the time was up before everything was tried.
        notes: what the user should know about what was not tried.
    """

    def __init__(
        self,
        baseline: Artifact,
        search: Search,
        context: Context,
        feeds: Feeds,
        *,
        cache: Cache | None = None,
    ) -> None:
        """Prepare to make candidates.

        Args:
            baseline: the FP32 graph.
            search: what is tried.
            context: feeds, meter, progress.
            feeds: of a timed call.
            cache: what was made before the run was killed; None: nothing.
        """
        self._baseline, self._search = baseline, search
        self._context, self._feeds = context, feeds
        self._cache = cache or Cache()
        self._deadline = math.inf
        if search.most_seconds is not None:
            self._deadline = time.monotonic() + search.most_seconds
        self._tried: dict[str, _Scheme] = {}  # splits by name
        self.was_cut = False
        self.notes: list[str] = []

    def rounds(self, look: Look) -> Iterator[list[Candidate]]:
        """Yield candidates in rounds; one that cannot be made says why in its place.

        Args:
            look: returns what the gate found out about a candidate of an earlier round.
        """
        for made in self._rounds(look):
            yield [*made, *self._stored(made)]

    def _stored(self, made: list[Candidate]) -> Iterator[Candidate]:
        """Yield what is too large again, its floats stored as INT8."""
        most = self._search.most_bytes
        for each in made:
            if most is not None and each.artifact and each.artifact.payload.ByteSize() > most:
                yield self._passed(f"{each.name}, stored as INT8", each.artifact, "store", {})

    def _rounds(self, look: Look) -> Iterator[list[Candidate]]:
        floats, bases = self._floats()
        yield floats
        schemes = [each for suffix, base in bases for each in self._schemes(suffix, base)]
        if schemes:
            yield [each.made for each in schemes]
        repaired = {each.name: [*self._repaired(each)] for each in _closest(schemes, look)}
        if any(repaired.values()):
            yield [new.made for group in repaired.values() for new in group]
        schemes = [_better(each, repaired.get(each.name, []), look) for each in schemes]
        pairs = [(each, self._splitting(each)) for each in _worth(schemes, look)]
        splittings = [(scheme, splitting) for scheme, splitting in pairs if splitting is not None]
        yield [new for pair in splittings for new in self._fastest_split(*pair)]
        for _ in range(1 + REFINING_ROUNDS):
            made = [new for pair in splittings for new in self._splits(*pair, look)]
            if not made:
                break
            yield made
        mended = [new for _, splitting in splittings for new in self._mended(splitting, look)]
        if mended:
            yield mended

    def is_late(self) -> bool:
        """Whether the time is up; from then on the search counts as cut."""
        self.was_cut = self.was_cut or time.monotonic() > self._deadline
        return self.was_cut

    def _floats(self) -> tuple[list[Candidate], list[tuple[str, Artifact]]]:
        """Return FP32 candidates, and the graphs that quantization begins with by their suffix."""
        try:
            folded = fold(self._baseline, self._take)
        except PassError as error:
            return [Candidate(FOLDED, failure=first_line(error))], []
        made, bases = [Candidate(FOLDED, folded)], [self._spelled("", folded)]
        if _operators(folded)["ConvTranspose"]:
            floats = {"precision": "float"}
            made.append(self._passed("FP32, lowered", folded, "lower", floats))
        lowered = lower(folded, self._take, self.notes.append)
        if lowered is not None:
            bases.append(self._spelled(f", {LOWERED}", lowered))
        return made, bases

    def _spelled(self, suffix: str, base: Artifact) -> tuple[str, Artifact]:
        """Return a graph with its activations spelled for integers, and a suffix that says so."""
        spelled = spell(base, self._take, self.notes.append)
        if not _writes_activations(spelled):
            return suffix, base
        return f"{suffix}, {SPELLED}", spelled

    def _take(self, name: str, before: Artifact, settings: Mapping[str, Any]) -> Artifact:
        """Return what a pass makes; raises PassError."""
        made = self._passed(name, before, name, settings)
        if made.artifact is None:
            raise PassError(made.failure)
        return made.artifact

    def _schemes(self, suffix: str, base: Artifact) -> Iterator[_Scheme]:
        for told, settings in self._settings(_operators(base), is_lowered=LOWERED in suffix):
            if self.is_late():
                return
            name = f"INT8, {told}{suffix}"
            made = self._passed(name, base, "quantize", settings)
            yield _Scheme(name, base, settings, made)

    def _settings(
        self, ops: Counter[str], *, is_lowered: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield names and settings of the quantize pass for a graph of these operators."""
        common = self._search.scheme.settings
        is_dynamic = any(ops[op] for op in ("MatMul", *RECURRENT))
        is_static = is_lowered or any(ops[op] for op in ("Conv", "Gemm"))
        modes: list[Mode] = [self._search.mode]
        if self._search.mode == "auto" and is_dynamic and is_static:
            modes = ["auto", "dynamic"]
        for mode in modes:
            yield mode, {**common, "mode": mode}
            if mode != "dynamic" and is_static:
                yield f"{mode}, least-error ranges", {**common, "mode": mode, "ranges": "auto"}
            if mode != "static" and any(ops[op] for op in RECURRENT):
                yield f"{mode}, per tensor", {**common, "mode": mode, "per_channel": False}

    def _repaired(self, scheme: _Scheme) -> Iterator[_Scheme]:
        """Yield a scheme that is outside the budget again, with its accuracy repaired."""
        config = QuantizeConfig(**scheme.settings)
        for variant in repairs(scheme.base.payload, config)[:REPAIRS]:
            if self.is_late():
                return
            told = "repaired" if variant.smooth is None else "smoothed and repaired"
            name, settings = f"{scheme.name}, {told}", variant.model_dump()
            yield _Scheme(name, scheme.base, settings, self._made(name, scheme, settings))

    def _splitting(self, scheme: _Scheme) -> Splitting | None:
        """Measure what nodes cost in both forms."""
        meter = self._context.meter
        if meter is None or scheme.made.artifact is None or self.is_late():
            return None
        graph, whole = with_node_names(scheme.base.payload), scheme.made.artifact.payload
        try:
            operators, borders = node_operators(graph, whole, meter, self._feeds)
        except StoppedError:
            raise
        except AigcCompressError as error:  # the whole scheme stands alone
            self._give_up(scheme, error)
            return None
        outputs = [each.name for each in graph.graph.output]
        return Splitting(operators, borders, outputs, {scheme.name: -math.inf})

    def _give_up(self, scheme: _Scheme, error: AigcCompressError) -> None:
        self.notes.append(f"{scheme.name} was not split further: {first_line(error)}")

    def _harm(self, scheme: _Scheme) -> Sensitivity:
        """Return the noise of roundings; what was measured before the run was killed is kept."""
        assert scheme.made.artifact is not None
        config = QuantizeConfig(**scheme.settings)
        about = ["harm", digest(scheme.base), config.model_dump(mode="json")]
        most = min(self._search.sensitivity_seconds, self._deadline - time.monotonic())
        floats, _ = repair_floats(with_node_names(scheme.base.payload), config, self._context)
        if config.mode == "auto":
            floats, _ = quantize_recurrent(
                floats, per_channel=config.per_channel, reduce_range=config.reduce_range
            )
        return measure_sensitivity(
            floats,
            scheme.made.artifact.payload,
            self._context,
            most_seconds=most,
            known=self._cache.value(about, dict[str, float], dict),
            keep=lambda noise: self._cache.store(about, dict[str, float], noise),
        )

    def _fastest_split(self, scheme: _Scheme, splitting: Splitting) -> Iterator[Candidate]:
        yield from self._split(scheme, splitting, splitting.fastest(), "fastest split", -math.inf)

    def _splits(self, scheme: _Scheme, splitting: Splitting, look: Look) -> Iterator[Candidate]:
        """Yield the splits to try next, where the scheme or its fastest split was outside."""
        if self.is_late() or not splitting.has_failed(look):
            return
        if splitting.points is None:
            try:
                splitting.measure(self._harm(scheme))
            except StoppedError:
                raise
            except AigcCompressError as error:  # the fastest split stands alone
                self._give_up(scheme, error)
                splitting.points = []
        for point in splitting.next(look, self._search.targets_db):
            told = f"split of {point.agreement_db:.1f} dB"
            if splitting.skipped:
                told += f" ({splitting.skipped} roundings not measured)"
            yield from self._split(scheme, splitting, point.split, told, point.agreement_db)

    def _split(
        self, scheme: _Scheme, splitting: Splitting, split: Split, told: str, agreement_db: float
    ) -> Iterator[Candidate]:
        name = f"{scheme.name}, {told}"
        nodes = with_node_names(scheme.base.payload).graph.node
        is_empty = not any(n.name in split.integer for n in nodes if n.op_type in ANCHORS)
        if is_empty or self.is_late():
            return
        splitting.tried[name] = agreement_db
        settings = with_only(QuantizeConfig(**scheme.settings), split.integer).model_dump()
        self._tried[name] = _Scheme(name, scheme.base, settings, self._made(name, scheme, settings))
        yield self._tried[name].made

    def _mended(self, splitting: Splitting, look: Look) -> Iterator[Candidate]:
        """Yield the split that only just misses the budget again, with its accuracy repaired."""
        name = splitting.last_outside(look)
        if name is not None:
            yield from (each.made for each in self._repaired(self._tried[name]))

    def _made(self, name: str, scheme: _Scheme, settings: Mapping[str, Any]) -> Candidate:
        made = self._passed(name, scheme.base, "quantize", settings)
        if made.artifact is None or not _writes_activations(scheme.base):
            return made
        # What stays float is faster in the spelling that ONNX Runtime joins with a Conv.
        floats = self._passed(name, made.artifact, "activations", {"spelling": "float"})
        return made if floats.artifact is None else floats

    def _passed(
        self, name: str, before: Artifact, pass_name: str, settings: Mapping[str, Any]
    ) -> Candidate:
        """Return what a pass makes, under this name, or why it makes nothing."""
        config = PASSES[pass_name].config.model_validate(dict(settings))
        about = [pass_name, config.model_dump(mode="json")]

        def run() -> Artifact:
            return run_passes(before, [(pass_name, config)], self._context)

        return _attempt(name, lambda: self._cache.artifact(before, about, run))


def _closest(schemes: list[_Scheme], look: Look) -> list[_Scheme]:
    """Return by graph the scheme closest to FP32, where it is outside the budget all the same."""
    best: dict[int, _Scheme] = {}
    for each in _worth(schemes, look):
        known = best.setdefault(id(each.base), each)
        if _closeness(each, look) > _closeness(known, look):
            best[id(each.base)] = each
    return [each for each in best.values() if look(each.name).is_outside]


def _better(scheme: _Scheme, repaired: list[_Scheme], look: Look) -> _Scheme:
    """Return the closest of the repaired forms where that is worth it, else the scheme itself."""
    best = max(repaired, key=lambda each: _closeness(each, look), default=scheme)
    gain_db = _closeness(best, look) - _closeness(scheme, look)
    return best if gain_db > GAIN_DB else scheme


def _closeness(scheme: _Scheme, look: Look) -> float:
    agreement = look(scheme.name).agreement_db
    return -math.inf if agreement is None else agreement


def _worth(schemes: list[_Scheme], look: Look) -> list[_Scheme]:
    """Return the static schemes worth splitting: those not much slower than the fastest."""
    static = [each for each in schemes if each.is_static and look(each.name).quick is not None]
    fastest = max((_speed(each, look) for each in static), default=0.0)
    return [each for each in static if _speed(each, look) > MUCH_SLOWER * fastest]


def _speed(scheme: _Scheme, look: Look) -> float:
    quick = look(scheme.name).quick
    return quick.ratio if quick else 0.0


def _writes_activations(artifact: Artifact) -> bool:
    """Whether a graph has activations that were spelled for integers."""
    steps = [each for each in artifact.history if each.name == "activations"]
    return any(each.numbers.get("written", 0) for each in steps)


def _attempt(name: str, make: Callable[[], Artifact]) -> Candidate:
    try:
        return Candidate(name, make())
    except (InputFileError, StoppedError):  # no candidate is to blame
        raise
    except AigcCompressError as error:
        return Candidate(name, failure=first_line(error))


def _operators(artifact: Artifact) -> Counter[str]:
    return Counter(node.op_type for node in all_nodes(artifact.payload.graph))
