import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_compress.bench.intervals import mean_measure, share_percent
from aigc_compress.bench.quality import measure_sqnr
from aigc_compress.cli.tables import detail_lines
from aigc_compress.errors import UsageError
from aigc_compress.task import Measure


class Table:
    """Answers the feed i with its i-th outputs."""

    def __init__(self, *outputs):
        self.outputs = outputs

    def run(self, feeds):
        return self.outputs[int(feeds["i"])]


def feeds(count):
    return [{"i": np.array(index)} for index in range(count)]


REFERENCE = Table(
    {"y": np.array([3.0, 4.0]), "best": np.array([1, 2])},
    {"y": np.array([0.0, 10.0]), "best": np.array([3, 4])},
)
CANDIDATE = Table(
    {"y": np.array([3.0, 4.5]), "best": np.array([1, 2])},
    {"y": np.array([0.0, 9.0]), "best": np.array([3, 0])},
)


def test_the_worst_output_is_the_quality_and_each_has_its_own():
    quality = measure_sqnr(REFERENCE, CANDIDATE, feeds(2))
    by_output = quality.details["sqnr_db_by_output"]
    assert by_output["y"] == pytest.approx(10 * math.log10((9 + 16 + 100) / (0.25 + 1)))
    assert by_output["best"] == pytest.approx(10 * math.log10(4 / 1))  # one of four labels differs
    assert quality.value == by_output["best"]


def test_cosine_is_told_of_float_outputs_alone():
    cosines = measure_sqnr(REFERENCE, CANDIDATE, feeds(2)).details["cosine_by_output"]
    dot, lengths = 9 + 18 + 90, math.sqrt(125) * math.sqrt(9 + 4.5**2 + 81)
    assert list(cosines) == ["y"]
    assert cosines["y"]["value"] == pytest.approx(dot / lengths)
    assert cosines["y"]["samples"] == 2


def test_the_worst_sample_is_named_with_its_output():
    worst = measure_sqnr(REFERENCE, CANDIDATE, feeds(2)).details["worst_sample_db"]
    assert (worst["index"], worst["output"]) == (1, "best")
    assert worst["value"] == pytest.approx(10 * math.log10(2))  # one of two labels differs


def test_a_sample_that_became_nan_is_the_worst():
    broken = Table(CANDIDATE.outputs[0], {"y": np.array([0.0, np.nan]), "best": np.array([3, 4])})
    details = measure_sqnr(REFERENCE, broken, feeds(2)).details
    worst = details["worst_sample_db"]
    assert (worst["index"], worst["output"], worst["value"]) == (1, "y", -200)
    assert details["sqnr_db_by_output"]["y"] == -200
    assert details["cosine_by_output"]["y"]["value"] == -1
    json.dumps(details, allow_nan=False)


def test_the_reference_beside_itself_is_equal_in_every_way():
    quality = measure_sqnr(REFERENCE, REFERENCE, feeds(2))
    assert quality.value == quality.details["worst_sample_db"]["value"] == 200
    assert quality.details["cosine_by_output"]["y"]["value"] == pytest.approx(1)


def test_outputs_of_zeros_and_of_no_entries_are_judged():
    empty = {"z": np.zeros(3), "none": np.zeros((0, 2), np.float32), "flag": np.array([True])}
    details = measure_sqnr(Table(empty), Table(empty), feeds(1)).details
    assert set(details["sqnr_db_by_output"].values()) == {200}
    assert {each["value"] for each in details["cosine_by_output"].values()} == {1.0}


def test_quality_needs_feeds():
    with pytest.raises(UsageError):
        measure_sqnr(REFERENCE, CANDIDATE, [])


@settings(deadline=None)  # the first example imports scipy
@given(st.integers(0, 200), st.integers(1, 200))
def test_a_share_has_the_interval_that_wilson_solved_for(right, count):
    hits = np.arange(count) < right
    share, z = min(right, count) / count, 1.959963984540054  # 97.5 % quantile of the normal
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    margin = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / 4 / count**2)
    measure = share_percent(hits)
    assert measure.value == pytest.approx(100 * share)
    assert measure.low == pytest.approx(100 * (middle - margin), abs=1e-6)
    assert measure.high == pytest.approx(100 * (middle + margin), abs=1e-6)
    assert measure.samples == count


def test_a_mean_has_students_interval():
    measure = mean_measure(np.array([1.0, 2.0, 3.0, 6.0]), higher_is_better=False)
    error = math.sqrt((4 + 1 + 0 + 9) / 3) / math.sqrt(4)
    t = 3.182446305284263  # 97.5 % quantile with three degrees of freedom, from a table
    assert (measure.value, measure.higher_is_better) == (3.0, False)
    assert measure.low == pytest.approx(3 - t * error)
    assert measure.high == pytest.approx(3 + t * error)


@pytest.mark.parametrize("values", [[1.0], [1.0, np.inf], [np.nan, 1.0]])
def test_a_mean_of_one_value_or_of_infinities_has_no_interval(values):
    measure = mean_measure(np.array(values), higher_is_better=True)
    assert measure.low is measure.high is None
    json.dumps(measure.document(), allow_nan=False)


def test_details_print_as_one_line_each():
    details = {
        "top_5_percent": Measure(99.8, True, 10_000, 99.7, 99.875).document(),
        "drift": {
            **Measure(0.0004, False, 32).document(),
            "by_step": [{"step": 1, "change": 0.25}, {"step": 9, "change": 0.5}],
            "grows": False,
        },
        "coverage_percent": {"bag": 9.5, "coat": 0.0},
        "kid": None,
        "kid_reason": "not installed",
        "images": 200,
    }
    assert detail_lines(details) == [
        "top_5_percent: 99.800 [99.700, 99.875] (higher is better, n 10000)",
        "drift: 4.0e-04 (lower is better, n 32;"
        " by_step step 1, change 0.250; step 9, change 0.500; grows no)",
        "coverage_percent: bag 9.500, coat 0.000",
        "kid: unknown",
        "kid_reason: not installed",
        "images: 200",
    ]
    assert detail_lines({}) == []
