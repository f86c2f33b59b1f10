"""What is remembered of values that come in pieces, against numpy on all of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aigc_compress.passes.histogram import BINS, Observed

RNG = np.random.default_rng(0)
SAMPLES = {
    "normal": RNG.standard_normal(50_000),
    "after a Relu": np.maximum(RNG.standard_normal(50_000), 0),
    "far from zero": RNG.uniform(5, 6, 50_000),
    "negative": -RNG.exponential(3, 50_000),
    "with an outlier": np.append(RNG.standard_normal(50_000), 1e4),
    "constant": np.full(1000, 3.3),
    "zero": np.zeros(1000),
}
FLOATS = arrays.arrays(
    np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False)
)


def observed(*pieces):
    found = Observed()
    for piece in pieces:
        found = found.including(np.asarray(piece, np.float32))
    return found


def facts(found):
    names = ("low", "high", "count", "zeros", "not_finite", "exponent", "first")
    return {name: getattr(found, name) for name in names}, found.bins.tolist()


@given(st.lists(FLOATS, min_size=1, max_size=6), st.randoms())
def test_what_is_remembered_does_not_depend_on_order_or_on_pieces(pieces, random):
    whole = observed(np.concatenate(pieces))
    random.shuffle(pieces)
    assert facts(observed(*pieces)) == facts(whole)


@given(FLOATS)
def test_bins_count_every_finite_value_but_zeros_where_it_lies(values):
    found = observed(values)
    finite = values[np.isfinite(values)].astype(np.float64)
    assert found.count == finite.size
    assert found.zeros == np.sum(finite == 0)
    assert found.not_finite == values.size - finite.size
    assert found.bins.size <= BINS
    assert found.bins.sum() == finite.size - found.zeros
    index = np.floor(np.ldexp(finite[finite != 0], -found.exponent)) - found.first
    expected = np.bincount(index.astype(int), minlength=found.bins.size)
    assert found.bins.tolist() == expected.tolist()


@pytest.mark.parametrize("name", SAMPLES)
def test_extremes_are_exact_and_the_bins_are_fine(name):
    values = SAMPLES[name].astype(np.float32)
    found = observed(*np.array_split(values, 7))
    assert (found.low, found.high) == (values.min(), values.max())
    assert (found.edges[0], found.edges[-1]) == (values.min(), values.max())
    # The width is the least power of two, so BINS / 2 bins are not enough for it.
    if values.min() < values.max():
        assert found.bins.size > BINS / 2


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("share", [0, 0.0005, 0.01, 0.5, 0.77, 0.99, 0.9995, 1])
def test_quantiles_are_those_of_numpy_to_within_one_bin(name, share):
    values = SAMPLES[name].astype(np.float32)
    found = observed(*np.array_split(values, 3))
    expected = np.quantile(values.astype(np.float64), share, method="inverted_cdf")
    assert abs(found.quantile(share) - expected) <= 2.0**found.exponent


def test_memory_does_not_grow_with_the_values():
    found = observed(*(RNG.standard_normal(100) * 10.0**scale for scale in range(-20, 20)))
    assert found.bins.nbytes <= 8 * BINS


def test_infinities_and_nan_are_counted_and_change_nothing_else():
    clean = observed([1, -2, 0])
    dirty = observed([1, np.nan, -2, np.inf, 0, -np.inf])
    assert dirty.not_finite == 3
    expected, bins = facts(clean)
    assert facts(dirty) == ({**expected, "not_finite": 3}, bins)
    assert observed([np.nan]).count == 0


def test_half_precision_is_remembered_by_name():
    values = np.float16([1.5, -0.25])
    found = Observed().including(values)
    assert found.dtype == "float16"
    assert (found.low, found.high) == (-0.25, 1.5)


def test_nothing_seen_has_no_quantile():
    with pytest.raises(ValueError, match="no values"):
        Observed().quantile(0.5)
