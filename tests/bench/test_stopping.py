import numpy as np
import pytest

from aigc_compress.bench.statistics import paired_speedup
from aigc_compress.bench.stopping import LEAST_PROCESSES, Stopping


@pytest.mark.parametrize("processes", [4, 8, 30])
def test_all_looks_together_leave_five_percent_to_chance(processes):
    rule = Stopping(processes)
    early = rule.early_looks * (1 - rule.confidence("verdict clear"))
    last = max(1 - rule.confidence(reason) for reason in ("all processes", "out of time"))
    assert early + last == pytest.approx(0.05)


def test_three_processes_have_one_look_at_ninety_five_percent():
    assert Stopping(3).early_looks == 0
    assert Stopping(3).confidence("all processes") == 0.95


def test_nothing_is_clear_without_candidates_or_before_three_processes():
    fast, slow = np.full((2, 4), 1.0), np.full((2, 4), 9.0)
    assert not Stopping(8).is_clear(slow, [fast])
    assert not Stopping(8).is_clear(np.full((3, 4), 9.0), [])


def test_every_candidate_must_have_its_verdict():
    rng = np.random.default_rng(0)
    base, fast, same = (c * np.exp(rng.normal(0, 0.01, (3, 8))) for c in (2.0, 1.0, 2.0))
    assert Stopping(8).is_clear(base, [fast])
    assert not Stopping(8).is_clear(base, [fast, same])


def test_looking_again_and_again_rarely_calls_chance_a_difference():
    rng, processes, wrong = np.random.default_rng(1), 6, 0
    for run in range(100):
        sides = [
            np.exp(rng.normal(0, 0.02, (processes, 1)) + rng.normal(0, 0.01, (processes, 6)))
            for _ in range(2)
        ]
        rule = Stopping(processes)
        early = any(
            rule.is_clear(sides[0][:n], [sides[1][:n]], seed=run)
            for n in range(LEAST_PROCESSES, processes)
        )
        last = paired_speedup(*sides, seed=run, confidence=rule.confidence("all processes"))
        wrong += early or last.verdict != "no difference shown"
    # 5 of 100 expected at most; 12 or more would happen by chance less than once in 200 runs.
    assert wrong < 12
