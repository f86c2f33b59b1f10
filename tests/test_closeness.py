import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_compress.closeness import agreement_db, sqnr_db


@given(st.floats(1e-4, 1.0))
def test_noise_of_a_known_share_gives_its_decibels(share):
    reference = np.array([3.0, -4.0])
    value = reference + np.array([0.0, 5.0 * share])
    assert sqnr_db(reference, value) == pytest.approx(-20 * np.log10(share))


def test_equal_arrays_count_as_200_and_other_shapes_as_minus_200():
    assert sqnr_db(np.ones(3), np.ones(3)) == 200
    assert sqnr_db(np.ones(3), np.ones(4)) == -200


def test_masked_entries_at_the_same_places_do_not_matter():
    reference = np.array([1.0, -np.inf, 2.0, np.nan])
    assert sqnr_db(reference, reference.copy()) == 200
    value = np.array([1.1, -np.inf, 2.0, np.nan])
    assert sqnr_db(reference, value) == pytest.approx(10 * np.log10(5 / 0.01), rel=1e-6)


@pytest.mark.parametrize("value", [[1.0, np.nan], [1.0, np.inf], [np.nan, 2.0]])
def test_a_new_nan_or_infinity_is_the_worst(value):
    assert sqnr_db(np.array([1.0, 2.0]), np.array(value)) == -200


def test_whole_numbers_are_judged_by_the_share_that_differs():
    reference = np.arange(100)
    value = reference.copy()
    value[7] = 0
    assert agreement_db(reference, value) == pytest.approx(20.0)
    assert agreement_db(reference, reference) == 200
