import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_compress.artifact import TensorSpec
from aigc_compress.engines import check_feeds
from aigc_compress.errors import FeedError, UsageError
from aigc_compress.feeds import parse_rules

IMAGE = TensorSpec("x", "float32", ("N", 3, "H", "W"))
COUNT = TensorSpec("n", "int64", ("N",))


def test_rules_draw_what_they_say():
    rules = parse_rules(["x=uniform(-2, -1)", "n=randint(3,5)"], ["H=4", "W=5"])
    feeds = rules.make([IMAGE, COUNT], seed=0, batch=6)
    assert feeds["x"].shape == (6, 3, 4, 5)
    assert feeds["x"].dtype == np.float32
    assert feeds["x"].min() >= -2
    assert feeds["x"].max() <= -1
    assert set(feeds["n"]) <= {3, 4}


def test_a_whole_shape_wins_over_axes():
    rules = parse_rules([], ["x=2,3,8,9", "H=4"])
    assert rules.make([IMAGE], seed=0)["x"].shape == (2, 3, 8, 9)


def test_one_number_after_a_vectors_name_is_its_whole_shape():
    assert parse_rules([], ["n=5"]).make([COUNT], seed=0)["n"].shape == (5,)


@given(st.integers(0, 1000), st.integers(1, 5))
def test_noise_fits_the_model_and_repeats_with_its_seed(seed, batch):
    rules = parse_rules([], [])
    feeds = rules.make([IMAGE, COUNT], seed=seed, batch=batch)
    check_feeds(feeds, (IMAGE, COUNT))
    again = rules.make([IMAGE, COUNT], seed=seed, batch=batch)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x": np.zeros((2, 3, 4), np.float32)}, "the feed is float32"),
        ({"x": np.zeros((2, 4, 4, 4), np.float32)}, "needs float32"),
        ({"x": np.zeros((2, 3, 4, 4), np.float64)}, "float64"),
        ({"n": np.zeros(3, np.int64)}, "N=2"),
        ({"m": np.zeros(2, np.int64)}, "named"),
    ],
)
def test_feeds_that_do_not_fit_are_explained(change, told):
    feeds = {"x": np.zeros((2, 3, 4, 4), np.float32), "n": np.zeros(2, np.int64), **change}
    with pytest.raises(FeedError, match=told):
        check_feeds(feeds, (IMAGE, COUNT))


@given(st.text(max_size=20) | st.from_regex(r"x=(normal\(|randint\()?[\d,.einfa²-]*\)?"))
def test_any_text_is_parsed_or_refused(text):
    for words in (([text], []), ([], [text])):
        with contextlib.suppress(UsageError):
            parse_rules(*words)
