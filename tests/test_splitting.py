"""What is tried next, from what became of what was tried."""

import math

import pytest

from aigc_compress.bench.statistics import RatioInterval
from aigc_compress.gate import Finding
from aigc_compress.passes.partition import Split
from aigc_compress.refine import Point
from aigc_compress.splitting import Splitting

POINTS = [Point(Split(frozenset({f"n{db}"}), 1.0), db) for db in (18.0, 22.0, 26.0, 30.0, 34.0)]
LADDER = (20.0, 29.0)


class Gate:
    """Lets through what agrees to `least_db`; splits closer to FP32 are slower."""

    def __init__(self, least_db):
        self.least_db = least_db

    def __call__(self, name):
        db = float(name.split()[-1])
        ratio = 3 - db / 40
        quick = RatioInterval(ratio, ratio, ratio)
        return Finding(name, quick=quick, validation=object(), is_outside=db < self.least_db)


def searched(least_db, rounds):
    """Return the SQNR of what is tried, round by round."""
    gate = Gate(least_db)
    splitting = Splitting([], {}, [], {"whole 10": -math.inf, "fastest 12": -math.inf}, POINTS)
    told = []
    for _ in range(rounds):
        found = splitting.next(gate, LADDER)
        splitting.tried |= {f"split {each.agreement_db}": each.agreement_db for each in found}
        told.append([each.agreement_db for each in found])
    return splitting, gate, told


@pytest.mark.parametrize(
    ("least_db", "wanted"),
    [
        (21.0, [[22.0, 30.0], [18.0], []]),
        (25.0, [[22.0, 30.0], [26.0], []]),
        (33.0, [[22.0, 30.0], [34.0], []]),
        (99.0, [[22.0, 30.0], [34.0], []]),
    ],
)
def test_the_ladder_comes_first_then_what_lies_between_outside_and_within(least_db, wanted):
    assert searched(least_db, 3)[2] == wanted


def test_where_the_fastest_split_is_within_nothing_slower_is_tried():
    splitting, _, _ = searched(25.0, 0)
    assert splitting.has_failed(Gate(25.0))
    assert not splitting.has_failed(Gate(11.0))


def test_the_last_outside_is_the_one_to_repair():
    splitting, gate, _ = searched(25.0, 3)
    assert splitting.last_outside(gate) == "split 22.0"


def test_without_a_split_outside_there_is_none_to_repair():
    splitting, gate, _ = searched(15.0, 1)
    assert splitting.last_outside(gate) is None
