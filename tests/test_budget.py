import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_compress.budget import Budget, judge_quality
from aigc_compress.errors import UsageError
from aigc_compress.task import Exhibit, Quality


def quality(value, metric="top-1 %", *, higher=True, spread=None):
    return Quality(metric, value, higher, 100, "test", spread)


def test_a_drop_counts_in_the_metrics_direction():
    assert quality(93.0).drop_from(quality(94.0)) == 1.0
    bits = "bits per character"
    assert quality(1.4, bits, higher=False).drop_from(quality(1.3, bits, higher=False)) > 0


@pytest.mark.parametrize(
    ("value", "within"), [(94.5, True), (93.5, True), (93.49, False), (float("nan"), False)]
)
def test_the_default_for_accuracy_is_half_a_point(value, within):
    assert judge_quality(quality(value), quality(94.0), None).within is within


def test_the_default_for_bits_is_one_percent():
    bits = "bits per character"
    baseline = quality(1.30, bits, higher=False)
    assert judge_quality(quality(1.312, bits, higher=False), baseline, None).within
    assert not judge_quality(quality(1.314, bits, higher=False), baseline, None).within


def test_kid_may_move_within_its_own_noise():
    kid = "KID x1e3 (reference CNN)"
    baseline = quality(10.0, kid, higher=False, spread=2.0)
    assert judge_quality(quality(11.9, kid, higher=False), baseline, None).within
    assert not judge_quality(quality(12.1, kid, higher=False), baseline, None).within


def test_without_a_baseline_the_sqnr_itself_must_reach_the_least():
    assert judge_quality(quality(20.0, "SQNR dB"), None, None).within
    assert not judge_quality(quality(25.0, "SQNR dB"), None, Budget(least_sqnr_db=30)).within


def test_budgets_are_read_in_units_and_in_percent():
    assert Budget.parse("0.5") == Budget(absolute=0.5)
    assert Budget.parse("1%") == Budget(share=0.01)
    for text in ("", "-1", "1 percent", "%"):
        with pytest.raises(UsageError):
            Budget.parse(text)


@given(st.decimals(0, 100, places=3), st.decimals(0, 100, places=3))
def test_a_larger_budget_never_refuses_what_a_smaller_one_allows(one, other):
    less, more = (Budget.parse(f"{amount}%") for amount in sorted((one, other)))
    baseline, value = quality(80.0), quality(60.0)
    allows = [judge_quality(value, baseline, budget).within for budget in (less, more)]
    assert allows == sorted(allows)
    assert less.allowed(baseline) == pytest.approx(float(min(one, other)) * 0.8)


def test_an_exhibit_stands_in_the_document_and_none_is_null():
    judgement = judge_quality(quality(93.0), quality(94.0), None)
    assert judgement.document()["exhibit"] is None
    shown = replace(judgement, exhibit=Exhibit.of_png(b"\x89PNG")).document()["exhibit"]
    assert shown["kind"] == "image/png"
    assert base64.b64decode(shown["data"]) == b"\x89PNG"
