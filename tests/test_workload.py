"""Which of the user's samples candidates are judged on, and what is told about it."""

import numpy as np
import pytest
from conftest import graph

from aigc_compress.artifact import Artifact, TensorSpec
from aigc_compress.closeness import agreement_db
from aigc_compress.feeds import FeedRules
from aigc_compress.workload import FeedOptions, FeedWorkload, make_workload

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


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("net (float[n,3,h,w] x) => (float y) { y = Relu(x) }", (1, 3, 64, 64)),
        (
            "net (float[n,3,32,w] x) => (float y) <float[1,1,1,32] k = {1.0}> { y = Add(x, k) }",
            None,
        ),
        ("net (float[n,steps,3] x) => (float y) { y = Relu(x) }", (1, 1, 3)),
    ],
)
def test_sides_of_pictures_whose_size_nobody_told_are_no_pixels(text, shape):
    if shape is None:  # 64 does not fit there, nor does 128
        text = text.replace("{1.0}", "{" + ",".join(["1.0"] * 32) + "}")
        shape = (1, 3, 32, 32)
    workload = make_workload(Artifact("onnx", graph(text)), FeedOptions())
    assert workload.timing_feeds(batch=1, length=1, seed=0)["x"].shape == shape
