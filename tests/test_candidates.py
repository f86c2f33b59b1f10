import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from conftest import RuleMeter
from onnx import parser

from aigc_compress.artifact import Artifact
from aigc_compress.bench.statistics import RatioInterval
from aigc_compress.cache import Cache, CachedMeter
from aigc_compress.candidates import FOLDED, Maker, Search
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.gate import Finding
from aigc_compress.passes import Context
from aigc_compress.passes.saturation import find_saturation
from aigc_compress.schemes import SCHEMES

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[4,3,3,3] w1 = {%s}, float[4,4,3,3] w2 = {%s}, float power = {7.0}>
{ a = Conv<pads = [1, 1, 1, 1]>(x, w1)  b = Pow(a, power)
  y = Conv<pads = [1, 1, 1, 1]>(b, w2) }"""


def chain():
    """Two convolutions; a few huge values in the input of the second waste the range of 8 bits."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 3, 3, 3)), rng.normal(size=(4, 4, 3, 3))
    texts = (", ".join(f"{value:.6f}" for value in each.ravel()) for each in (first, second))
    return Artifact("onnx", parser.parse_model(CHAIN % tuple(texts)))


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(1)
    return tuple({"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)} for _ in range(3))


@dataclass
class Meter(RuleMeter):
    """Notes what it is asked."""

    asked: list = field(default_factory=list)

    def compare(self, baseline, candidates, feeds, engines=()):
        self.asked.append("compare")
        return [RatioInterval(2.0, 1.9, 2.1) for _ in candidates]

    def profile(self, artifact, feeds):
        self.asked.append("profile")
        return super().profile(artifact, feeds)


class Judge:
    """Knows candidates as a gate with a budget of `least_db` would."""

    def __init__(self, graph, feeds, least_db):
        self.feeds, self.least_db, self.known, self.graphs = feeds, least_db, {}, {}
        session = OrtSession(graph, threads=1)
        self.wanted = [session.run(each) for each in feeds]

    def __call__(self, name):
        return self.known[name]

    def admit(self, candidates):
        for each in candidates:
            self.known[each.name] = self._judged(each)

    def _judged(self, candidate):
        if candidate.artifact is None:
            return Finding(candidate.name, reason=candidate.failure)
        self.graphs[candidate.name] = candidate.artifact.payload
        session = OrtSession(candidate.artifact, threads=1)
        db = lowest_agreement_db(self.wanted, [session.run(each) for each in self.feeds])
        is_outside = db < self.least_db
        quick = RatioInterval(2.0, 1.9, 2.1)
        return Finding(candidate.name, 1, db, quick, None, object(), "", is_outside)


def made_for(feeds, least_db, *, cache=None, search=None, meter=None):
    graph = chain()
    meter = CachedMeter(meter or Meter(), cache or Cache())
    context = Context(feeds[:2], feeds, meter=meter)
    maker = Maker(graph, search or Search(targets_db=(25.0, 40.0)), context, feeds[0], cache=cache)
    judge, rounds = Judge(graph, feeds, least_db), []
    for candidates in maker.rounds(judge):
        judge.admit(candidates)
        rounds.append([each.name for each in candidates])
    return rounds, judge, maker


def test_where_the_whole_is_within_the_budget_no_target_is_aimed_at(feeds):
    rounds, _, _ = made_for(feeds, -math.inf)
    assert rounds[0] == [FOLDED]
    assert rounds[1] == ["INT8, auto", "INT8, auto, least-error ranges"]
    assert not any(" dB" in name for names in rounds for name in names)


def test_a_split_saves_the_quality_that_the_whole_loses(feeds):
    rounds, judge, _ = made_for(feeds, 25.0)
    whole = max(judge(name).agreement_db for name in rounds[1])
    assert whole < 25.0
    aimed = [judge(name) for names in rounds[2:] for name in names if " dB" in name]
    assert any(not each.is_outside and each.agreement_db > 25.0 for each in aimed)


@pytest.mark.parametrize(("isa", "saturates"), [("avx2", False), ("vnni", True)])
def test_weights_are_those_of_the_processor_that_the_answer_is_for(feeds, isa, saturates):
    _, judge, _ = made_for(feeds, -math.inf, search=Search(scheme=SCHEMES[isa]))
    found = find_saturation(judge.graphs["INT8, auto"])
    assert len(found) == 2
    assert any(each.is_possible for each in found) is saturates


def test_no_candidate_is_made_after_the_time_is_over(feeds):
    rounds, _, maker = made_for(feeds, 30.0, search=Search(most_seconds=0.0))
    assert [name for names in rounds for name in names] == [FOLDED]
    assert maker.was_cut


def test_a_run_that_goes_on_makes_the_same_and_measures_nothing_again(feeds, tmp_path):
    first = Meter()
    before = made_for(feeds, 30.0, cache=Cache(tmp_path), meter=first)
    again, cache = Meter(), Cache(tmp_path)
    after = made_for(feeds, 30.0, cache=cache, meter=again)
    assert first.asked
    assert again.asked == []
    assert cache.has_reused
    assert after[0] == before[0]
    assert {n: f.agreement_db for n, f in after[1].known.items()} == {
        n: f.agreement_db for n, f in before[1].known.items()
    }


def test_what_is_too_large_comes_again_with_its_floats_stored_as_integers(feeds):
    rounds, judge, _ = made_for(feeds, 25.0, search=Search(targets_db=(25.0,), most_bytes=1000))
    too_large = [FOLDED, "INT8, auto"]
    for name in too_large:
        again = f"{name}, stored as INT8"
        assert any(name in names and again in names for names in rounds)
    # The chain's weights are few: what cannot be stored says so in its place.
    assert "at least 1024 elements" in judge(f"{FOLDED}, stored as INT8").reason


def test_nothing_is_stored_otherwise_where_any_size_will_do(feeds):
    rounds, _, _ = made_for(feeds, 25.0)
    assert not any("stored" in name for names in rounds for name in names)
