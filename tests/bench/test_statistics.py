import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aigc_compress.bench.statistics import paired_speedup, percentile_interval


def blocks(rng, center, shape=(3, 30), spread=0.05):
    return center * np.exp(rng.normal(0, spread, shape))


def test_a_model_twice_as_fast_is_faster_with_a_ratio_of_two():
    rng = np.random.default_rng(0)
    found = paired_speedup(blocks(rng, 2.0), blocks(rng, 1.0))
    assert found.low < 2.0 < found.high
    assert found.verdict == "faster"


def test_a_slower_model_is_called_slower():
    rng = np.random.default_rng(1)
    assert paired_speedup(blocks(rng, 1.0), blocks(rng, 1.5)).verdict == "slower"


def test_a_model_against_itself_shows_no_difference():
    rng = np.random.default_rng(2)
    found = paired_speedup(blocks(rng, 1.0), blocks(rng, 1.0))
    assert found.verdict == "no difference shown"


def test_the_interval_of_one_process_is_that_of_scipys_standard_error():
    rng = np.random.default_rng(3)
    baseline, candidate = blocks(rng, 3.0, (1, 60)), blocks(rng, 2.0, (1, 60))
    found = paired_speedup(baseline, candidate)
    error = stats.bootstrap(
        (np.log(baseline[0] / candidate[0]),),
        np.median,
        rng=np.random.default_rng(4),
    ).standard_error
    margin = stats.t.ppf(0.975, 59) * error * np.sqrt(60 / 59)
    # Both are Monte Carlo: with 2,000 resamples a standard error is known to about 2 %.
    assert np.log(found.high / found.ratio) == pytest.approx(margin, rel=0.08)
    assert np.log(found.ratio / found.low) == pytest.approx(margin, rel=0.08)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_the_interval_covers_the_truth_though_processes_differ(processes):
    rng = np.random.default_rng(7)

    def side():
        return np.exp(rng.normal(0, 0.02, (processes, 1)) + rng.normal(0, 0.01, (processes, 15)))

    wrong = sum(
        paired_speedup(side(), side(), seed=i).verdict != "no difference shown" for i in range(100)
    )
    # 95 % intervals miss 5 of 100; 12 or more would happen by chance less than once in 200 runs.
    assert wrong < 12


@pytest.mark.parametrize(("percent", "smallest"), [(90, 36), (95, 72), (99, 368)])
def test_percentiles_have_an_interval_only_where_enough_samples_exist(percent, smallest):
    samples = np.random.default_rng(8).exponential(size=smallest)
    assert percentile_interval(samples[:-1], percent).high is None
    found = percentile_interval(samples, percent)
    assert found.low <= found.value <= found.high


def test_percentile_intervals_cover_the_truth_95_times_of_100():
    rng = np.random.default_rng(9)
    truth = -np.log(0.1)  # the 90th percentile of an exponential
    found = [percentile_interval(rng.exponential(size=200), 90) for _ in range(400)]
    covered = sum(each.low <= truth <= each.high for each in found)
    assert covered >= 366  # 380 expected; fewer than 366 by chance once in 1,000


def test_a_slow_spell_that_hits_both_models_alike_does_not_make_a_verdict():
    rng = np.random.default_rng(5)
    spell = np.where(rng.random((3, 30)) < 0.3, 4.0, 1.0)
    noise = [np.exp(rng.normal(0, 0.01, (3, 30))) for _ in range(2)]
    found = paired_speedup(spell * noise[0], spell * noise[1])
    assert found.verdict == "no difference shown"


@given(st.floats(0.1, 10), st.integers(2, 4), st.integers(2, 12))
def test_scaling_one_side_scales_ratio_and_interval(factor, processes, count):
    rng = np.random.default_rng(6)
    a, b = blocks(rng, 1.0, (processes, count)), blocks(rng, 1.0, (processes, count))
    plain, scaled = paired_speedup(a, b), paired_speedup(a * factor, b)
    assert scaled.ratio == pytest.approx(plain.ratio * factor)
    assert scaled.low == pytest.approx(plain.low * factor)
    assert scaled.high == pytest.approx(plain.high * factor)


def test_blocks_that_are_not_paired_are_refused():
    with pytest.raises(ValueError, match="paired"):
        paired_speedup(np.ones((3, 4)), np.ones((3, 5)))
