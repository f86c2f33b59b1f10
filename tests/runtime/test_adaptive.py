"""Moving between variants, on a clock that tests set."""

import numpy as np
import pytest
from bundles import write_bundle

from aigc_compress.errors import UsageError
from aigc_compress.runtime import Adaptive, load
from aigc_compress.runtime.adaptive import Policy

FEEDS = {"x": np.ones((1, 4), np.float32)}


class Clock:
    """Seconds that pass when a model is called, as many as its variant takes."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def served(tmp_path):
    """Return a function that makes an adaptive model of a policy, its clock, its variants' ms."""
    bundle = load(write_bundle(tmp_path)[0])

    def make(**policy):
        clock, taken = Clock(), {"exact": 8.0, "fast": 2.0}
        model = Adaptive(bundle, Policy(**{"target_ms": 10.0, "every": 10, **policy}), clock=clock)
        for level in model._levels:
            level.model = slowed(level.model, clock, taken, level.variant.name)
        return model, clock, taken

    return make


def slowed(model, clock, taken, name):
    def run(**feeds):
        clock.now += taken[name] / 1000
        return model(**feeds)

    return run


def call(model, count, *, waited_ms=0.0):
    for _ in range(count):
        model.run(FEEDS, since=model._clock() - waited_ms / 1000)


def test_the_most_exact_serves_while_it_keeps_the_target(served):
    model, _, _ = served()
    call(model, 100)
    assert model.variant == "exact"
    assert model.stats()["moves"] == []
    assert model.stats()["p95_ms"] == pytest.approx(8.0)


def test_under_load_the_faster_one_takes_over_and_later_gives_way_again(served):
    model, _, _ = served(calm=3)
    call(model, 10, waited_ms=6.0)
    assert model.variant == "fast"
    (move,) = model.stats()["moves"]
    assert (move["from"], move["to"]) == ("exact", "fast")
    assert "14" in move["why"]
    # Calls of 2 + 1 ms: on the exact variant some 12 would be expected, more than half the target.
    call(model, 100, waited_ms=1.0)
    assert model.variant == "fast"


def test_it_comes_back_only_after_calm_for_a_while(served):
    model, _, _ = served(calm=3, back_below=0.9)
    call(model, 10, waited_ms=6.0)
    call(model, 20)
    assert model.variant == "fast"
    call(model, 10)
    assert model.variant == "exact"
    assert [each["to"] for each in model.stats()["moves"]] == ["fast", "exact"]


def test_near_the_target_it_does_not_swing(served):
    model, _, _ = served(calm=2)
    for _ in range(20):
        call(model, 10, waited_ms=2.5)  # 10.5 ms on the exact one
        call(model, 10, waited_ms=0.5)  # 2.5 ms on the fast one: 10 would be expected
    assert len(model.stats()["moves"]) == 1


def test_where_users_are_not_content_the_more_exact_one_serves(served):
    model, clock, _ = served(votes=4, banned_seconds=60.0)
    call(model, 10, waited_ms=6.0)
    for is_good in (True, False, False, False):
        model.feedback(is_good=is_good)
    assert model.variant == "exact"
    assert "3 of 4 users" in model.stats()["moves"][-1]["why"]
    call(model, 20, waited_ms=6.0)  # too slow, but the faster one is banned
    assert model.variant == "exact"
    clock.now += 60
    call(model, 10, waited_ms=6.0)
    assert model.variant == "fast"


def test_good_votes_move_nothing(served):
    model, _, _ = served(votes=4)
    for _ in range(20):
        model.feedback(is_good=True)
    assert model.stats()["moves"] == []


def test_a_target_must_be_positive(served):
    with pytest.raises(UsageError, match="above 0"):
        served(target_ms=0.0)
