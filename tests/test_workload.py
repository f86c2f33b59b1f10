"""Which of the user's samples candidates are judged on, and what is told about it."""

import numpy as np
import pytest

from aigc_compress.artifact import TensorSpec
from aigc_compress.closeness import agreement_db
from aigc_compress.feeds import FeedRules
from aigc_compress.workload import FeedWorkload

INPUTS = (TensorSpec("x", "float32", ("N",)),)


class Scaling:
    """Returns its input times a factor, and remembers which samples it saw."""

    def __init__(self, factor):
        self.factor, self.seen = factor, []

    def run(self, feeds):
        self.seen.append(int(feeds["x"][0]))
        return {"y": self.factor * feeds["x"]}


def workload_of(calibration, evaluation=0):
    def feeds(count):
        return tuple({"x": np.float32([index, 1.0])} for index in range(count))

    return FeedWorkload(INPUTS, FeedRules(), feeds(calibration), feeds(evaluation or calibration))


def measure(workload, split, samples=None):
    """Return the quality of a candidate, and the indices of the samples that it ran on."""
    candidate = Scaling(1.01)
    quality = workload.measure(
        candidate, Scaling(1.0), samples=samples, seed=0, on_step=None, split=split
    )
    return quality, candidate.seen


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000, 10_000])
def test_candidates_are_judged_on_a_bounded_number_of_samples_spread_over_all(count):
    quality, seen = measure(workload_of(count), "validation")
    assert quality.samples == len(seen)
    assert min(count, 128) <= len(seen) <= 256
    assert seen[0] == 0
    assert set(np.diff(seen)) <= {-(-count // 256)}
    assert count - seen[-1] <= -(-count // 256)
    notes = workload_of(count).search_notes(samples=None)
    assert bool(notes) == (len(seen) < count)
    assert all(f"{len(seen)} of the {count} calibration samples" in note for note in notes)


def test_the_answer_is_judged_on_all_evaluation_samples():
    quality, seen = measure(workload_of(5, evaluation=1000), "test")
    assert seen == list(range(1000))
    wanted = np.concatenate([[index, 1.0] for index in range(1000)])
    # The candidate's outputs are float32, whose rounding is 2^-24 beside an error of 2^-7.
    assert quality.value == pytest.approx(agreement_db(wanted, 1.01 * wanted), abs=1e-4)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_wanted_number_of_samples_is_kept_to(split):
    _, seen = measure(workload_of(1000), split, samples=300)
    assert seen == list(range(300))
    assert workload_of(1000).search_notes(samples=300) == ()
