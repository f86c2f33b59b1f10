import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_compress.closeness import agreement_db, cosine_similarity, sqnr_db


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


@given(st.floats(0, np.pi), st.floats(1e-3, 1e3))
def test_cosine_is_that_of_the_angle_whatever_the_lengths(angle, length):
    value = length * np.array([np.cos(angle), np.sin(angle)])
    assert cosine_similarity(np.array([2.0, 0.0]), value) == pytest.approx(np.cos(angle), abs=1e-12)


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_cosine_of_numbers_whose_squares_float64_cannot_hold(size):
    assert cosine_similarity(np.array([size, 0.0]), np.array([size, size])) == pytest.approx(
        np.sqrt(0.5)
    )


def test_cosine_beside_zeros():
    zeros, ones = np.zeros((2, 3)), np.ones((2, 3))
    assert cosine_similarity(zeros, zeros) == 1
    assert cosine_similarity(zeros, ones) == cosine_similarity(ones, zeros) == 0
    assert cosine_similarity(np.array([]), np.array([])) == 1


def test_cosine_leaves_out_masked_entries_and_punishes_new_ones():
    reference = np.array([1.0, -np.inf, 0.0, np.nan])
    assert cosine_similarity(reference, np.array([1.0, -np.inf, 1.0, np.nan])) == pytest.approx(
        np.sqrt(0.5)
    )
    assert cosine_similarity(reference, np.array([1.0, np.inf, 0.0, np.nan])) == -1
    assert cosine_similarity(np.ones(2), np.array([1.0, np.nan])) == -1
    assert cosine_similarity(np.ones(2), np.ones(3)) == -1
