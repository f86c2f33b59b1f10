"""Ranges chosen from what calibration saw."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from aigc_compress.errors import PassError, UsageError
from aigc_compress.passes.histogram import Observed
from aigc_compress.passes.ranges import METHODS, choose_ranges, to_tensors_data

RNG = np.random.default_rng(0)
WIDE = np.append(RNG.standard_normal(100_000), np.full(10, 30.0)).astype(np.float32)
SAMPLES = {
    "normal": RNG.standard_normal(20_000),
    "after a Relu": np.maximum(RNG.standard_normal(20_000), 0),
    "after a LeakyRelu": (lambda x: np.where(x > 0, x, 0.1 * x))(RNG.standard_normal(20_000)),
    "heavy tails": RNG.standard_t(3, 20_000),
    "far from zero": RNG.uniform(5, 6, 20_000),
    "negative": -RNG.exponential(3, 20_000),
}


def seen(values, *, dtype=np.float32):
    return {"t": Observed().including(np.asarray(values, dtype))}


def the_range(values, **settings):
    return choose_ranges(seen(values), **settings)["t"]


def squared_error(values, low, high, *, bits=8, symmetric=False):
    """Return the mean squared error of rounding values as ONNX's QuantizeLinear does."""
    intervals = 2**bits - (2 if symmetric else 1)
    scale = (high - low) / intervals
    zero_point = round(-low / scale)
    integers = np.clip(np.rint(values / scale) + zero_point, 0, intervals)
    return float(np.mean(((integers - zero_point) * scale - values) ** 2))


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_expected_error_is_the_one_that_rounding_makes(name, symmetric, method):
    values = SAMPLES[name].astype(np.float32)
    chosen = the_range(values, symmetric=symmetric, method=method)
    assert chosen.low <= 0 <= chosen.high
    expected = squared_error(
        values.astype(np.float64), chosen.low, chosen.high, symmetric=symmetric
    )
    # The histogram spreads values evenly within its bins: a few percent at a step of 8 bins.
    assert chosen.mse[chosen.method] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(("bits", "symmetric"), [(8, False), (8, True), (4, False), (4, True)])
def test_the_least_error_is_that_of_brute_force(name, bits, symmetric):
    values = SAMPLES[name].astype(np.float32)
    chosen = the_range(values, bits=bits, symmetric=symmetric, method="mse")
    values = values.astype(np.float64)
    low, high = min(values.min(), 0), max(values.max(), 0)
    parts = np.linspace(1 / 30, 1, 30)
    if symmetric:
        ends = [(-part * max(high, -low), part * max(high, -low)) for part in parts]
    else:
        sides = [parts if side else [1] for side in (low, high)]
        ends = [(a * low, b * high) for a, b in itertools.product(*sides)]
    sample = values[::10]
    errors = [squared_error(sample, *pair, bits=bits, symmetric=symmetric) for pair in ends]
    best = squared_error(values, *ends[int(np.argmin(errors))], bits=bits, symmetric=symmetric)
    found = squared_error(values, chosen.low, chosen.high, bits=bits, symmetric=symmetric)
    # Both searches are grids, and the histogram's estimate of a sample differs by a percent or so.
    assert found <= 1.05 * best


@pytest.mark.parametrize("percent", ["99.9", "99.99", "99.999"])
def test_percentiles_cut_equal_shares_of_both_sides(percent):
    values = RNG.standard_t(4, 200_000).astype(np.float32)
    chosen = the_range(values, method=f"percentile-{percent}")
    beyond = (100 - float(percent)) / 2
    for end, at in ((chosen.low, beyond), (chosen.high, 100 - beyond)):
        expected = np.percentile(values.astype(np.float64), at, method="inverted_cdf")
        assert abs(end - expected) <= 2.0 ** seen(values)["t"].exponent


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_clips_outliers_that_minmax_keeps(symmetric):
    widest = the_range(WIDE, method="minmax", symmetric=symmetric)
    chosen = the_range(WIDE, method="entropy", symmetric=symmetric)
    assert widest.high == 30
    # 100,000 normal values reach beyond 4; what is clipped must be the outliers, not the bell.
    assert 3 < chosen.high < 10
    assert -10 < chosen.low < -3


def test_entropy_is_the_divergence_that_scipy_computes():
    values = SAMPLES["after a Relu"].astype(np.float32)
    chosen = the_range(values, method="entropy")
    found = seen(values)["t"]
    holds = found.bins > 0
    counts = found.bins[holds].astype(float)
    middles = ((found.edges[:-1] + found.edges[1:]) / 2)[holds]

    def divergence(high):
        inside = middles <= high
        clipped, kept = counts[inside].copy(), counts[inside]
        clipped[-1] += counts[~inside].sum()
        level = np.minimum(np.floor(middles[inside] / high * 256), 255)
        spread = [kept[level == each].mean() for each in level]
        return stats.entropy(clipped, spread)

    candidates = np.geomspace(found.high, found.high * 256 / 4096, 64)
    best = min(candidates, key=divergence)
    assert chosen.high == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("name", SAMPLES)
def test_auto_and_percentile_take_the_method_with_the_least_error(name):
    observed = seen(SAMPLES[name])
    single = [method for method in METHODS if method not in ("auto", "percentile")]
    alone = {method: choose_ranges(observed, method=method)["t"] for method in single}
    percentiles = {m for m in single if m.startswith("percentile-")}
    assert len(percentiles) == 3
    for group, members in (("auto", set(single)), ("percentile", percentiles)):
        chosen = choose_ranges(observed, method=group)["t"]
        assert chosen.mse == {m: alone[m].mse[m] for m in members}
        assert chosen.mse[chosen.method] == min(chosen.mse.values())
        best = alone[chosen.method]
        assert (chosen.low, chosen.high) == (best.low, best.high)


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=30),
    st.sampled_from(METHODS),
    st.booleans(),
    st.integers(2, 16),
)
@settings(deadline=None)
def test_zero_lies_inside_every_range_and_no_end_beyond_the_values(values, method, symmetric, bits):
    chosen = the_range(values, method=method, symmetric=symmetric, bits=bits)
    assert chosen.low <= 0 <= chosen.high
    largest = max(map(abs, values))
    assert max(-chosen.low, chosen.high) <= largest
    if symmetric:
        assert chosen.low == -chosen.high
    else:
        assert chosen.low >= min(*values, 0)
        assert chosen.high <= max(*values, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("constant", "ends"), [(0, (0, 0)), (2.5, (0, 2.5)), (-2, (-2, 0))])
def test_constants_and_zeros_keep_their_value(method, constant, ends):
    chosen = the_range(np.full(50, constant), method=method)
    assert (chosen.low, chosen.high) == ends
    # A constant lies on the last point of its grid; only its bin's width, 2^-30 of it, is unknown.
    assert chosen.mse[chosen.method] <= 1e-12


def test_values_without_a_range_are_refused_by_the_name_of_their_tensor():
    for values, message in (
        ([1, np.nan, np.inf], "tensor t held 2 infinities or NaN"),
        ([], "tensor t was empty"),
    ):
        with pytest.raises(PassError, match=message):
            the_range(values)


def test_wrong_settings_are_refused():
    with pytest.raises(UsageError, match="Did you mean 'minmax'"):
        the_range([1.0], method="min-max")
    with pytest.raises(UsageError, match="bits is 17"):
        the_range([1.0], bits=17)


def test_tensors_data_keep_the_dtype_of_the_tensor():
    ranges = choose_ranges(seen([0.5, 3], dtype=np.float16), method="minmax")
    data = to_tensors_data(ranges)["t"]
    assert (data.lowest.dtype, data.highest.dtype) == (np.float16, np.float16)
    assert data.range_value == (0, 3)
