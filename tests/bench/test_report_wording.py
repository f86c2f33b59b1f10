"""Groups of rows, the Pareto front and the words of a report."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_documents import document, read, row, speedup

from aigc_compress.bench.report.groups import group_rows
from aigc_compress.bench.report.pareto import pareto_front
from aigc_compress.bench.report.wording import interval_text, number_text, size_clause, speed_clause


def test_groups_begin_at_baselines_and_at_other_sizes_of_a_call(tmp_path):
    told = document(
        row("a.onnx", is_baseline=True),
        row("a.int8.onnx"),
        row("a.onnx", is_baseline=True, batch=8),
        row("a.int8.onnx", batch=8),
        row("b.onnx", batch=1),
    )
    groups = group_rows([read(tmp_path, told)])
    assert [len(group.entries) for group in groups] == [2, 2, 1]
    assert groups[1].point == "batch 8"
    assert groups[2].baseline is None


def front_by_definition(points):
    """Return the indices of the points that no other one beats, from the definition, O(n^2)."""

    def beats(one, other):
        return one[0] <= other[0] and one[1] <= other[1] and one != other

    return {i for i, p in enumerate(points) if not any(beats(q, p) for q in points)}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25))
def test_the_front_is_what_nothing_beats(points):
    front = pareto_front(points)
    assert set(front) == front_by_definition(points)
    assert len(front) == len(set(front))
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_sizes_read_as_factors():
    assert size_clause(5_839_158, 1_578_488) == "3.7\N{MULTIPLICATION SIGN} smaller"
    assert size_clause(1000, 3000) == "3.0\N{MULTIPLICATION SIGN} larger"
    assert size_clause(1000, 950) == "5% smaller"
    assert size_clause(1000, 1001) == "the same size"
    assert size_clause(None, 5) is None


def test_speed_reads_by_its_interval_and_not_by_its_ratio(tmp_path):
    def clause(*ends):
        return speed_clause(read(tmp_path, document(row("a", speedup=speedup(*ends)))).rows[0])

    assert clause(1.02, 0.98, 1.06).startswith("no speed difference shown")
    assert "faster" in clause(1.02, 1.01, 1.03)
    assert "slower" in clause(0.9, 0.8, 0.99)


def test_an_end_beside_one_is_not_rounded_to_it(tmp_path):
    told = document(row("a", speedup=speedup(0.97, 0.94, 0.999)))
    assert interval_text(read(tmp_path, told).rows[0].speedup) == "0.94\N{EN DASH}0.999"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0826, "0.0826"), (0.5, "0.500"), (9.6154, "9.615"), (12.345, "12.35")],
)
def test_numbers_read_with_the_digits_that_count(value, text):
    assert number_text(value) == text


def test_a_number_that_was_not_finite_is_told():
    assert number_text(None) == "not finite"
