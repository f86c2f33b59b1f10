import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aigc_compress.bench.statistics import ratio_of_medians


def blocks(rng, center, shape=(3, 30), spread=0.05):
    return center * np.exp(rng.normal(0, spread, shape))


def test_a_model_twice_as_fast_is_faster_with_a_ratio_of_two():
    rng = np.random.default_rng(0)
    found = ratio_of_medians(blocks(rng, 2.0), blocks(rng, 1.0))
    assert found.low < 2.0 < found.high
    assert found.verdict == "faster"


def test_a_slower_model_is_called_slower():
    rng = np.random.default_rng(1)
    assert ratio_of_medians(blocks(rng, 1.0), blocks(rng, 1.5)).verdict == "slower"


def test_a_model_against_itself_shows_no_difference():
    rng = np.random.default_rng(2)
    found = ratio_of_medians(blocks(rng, 1.0), blocks(rng, 1.0))
    assert found.verdict == "no difference shown"


def test_the_interval_agrees_with_scipys_bootstrap_of_one_process():
    rng = np.random.default_rng(3)
    baseline, candidate = blocks(rng, 3.0, (1, 60)), blocks(rng, 2.0, (1, 60))
    found = ratio_of_medians(baseline, candidate)
    wanted = stats.bootstrap(
        (baseline[0], candidate[0]),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval
    # Both are Monte Carlo: 2,000 and 9,999 resamples agree to a tenth of the interval's width.
    width = wanted.high - wanted.low
    assert found.low == pytest.approx(wanted.low, abs=0.15 * width)
    assert found.high == pytest.approx(wanted.high, abs=0.15 * width)


def test_a_slow_spell_that_hits_both_models_alike_does_not_make_a_verdict():
    rng = np.random.default_rng(5)
    spell = np.where(rng.random((3, 30)) < 0.3, 4.0, 1.0)
    noise = [np.exp(rng.normal(0, 0.01, (3, 30))) for _ in range(2)]
    found = ratio_of_medians(spell * noise[0], spell * noise[1])
    assert found.verdict == "no difference shown"


@given(st.floats(0.1, 10), st.integers(1, 4), st.integers(2, 12))
def test_scaling_one_side_scales_ratio_and_interval(factor, processes, count):
    rng = np.random.default_rng(6)
    a, b = blocks(rng, 1.0, (processes, count)), blocks(rng, 1.0, (processes, count))
    plain, scaled = ratio_of_medians(a, b), ratio_of_medians(a * factor, b)
    assert scaled.ratio == pytest.approx(plain.ratio * factor)
    assert scaled.low == pytest.approx(plain.low * factor)
    assert scaled.high == pytest.approx(plain.high * factor)


def test_blocks_that_are_not_paired_are_refused():
    with pytest.raises(ValueError, match="paired"):
        ratio_of_medians(np.ones((3, 4)), np.ones((3, 5)))
