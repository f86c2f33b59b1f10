import numpy as np

from aigc_compress.bench.error_rates import decide, error_rates


def sides(seed, spread=0.005):
    rng = np.random.default_rng(seed)
    return tuple(2.0 * np.exp(rng.normal(0, spread, (6, 5))) for _ in range(2))


def test_the_verdict_is_that_of_the_first_clear_look():
    baseline, candidate = sides(0)
    candidate = candidate.copy()
    candidate[:3] /= 2
    candidate[3:] *= 10  # never looked at: three processes were clear
    assert decide(baseline, candidate).verdict == "faster"


def test_false_verdicts_are_few_and_changes_of_five_and_ten_percent_are_found():
    rates = error_rates("model", np.array([sides(seed) for seed in range(20)]))
    assert rates.runs == 20
    assert rates.false_verdicts <= 2
    # A deviation of 0.5 % per block leaves 5 % far outside every interval.
    assert rates.found == {"1.05": 20, "1.10": 20}
    assert 0 < rates.half_width < 0.03


def test_where_times_scatter_widely_a_small_change_is_not_claimed():
    rates = error_rates("model", np.array([sides(seed, spread=0.5) for seed in range(10)]))
    assert rates.found["1.05"] <= 2
