import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_compress.passes.partition import Border, Operator, cheapest_split


def time_of(integer, operators, borders, outputs):
    """Add up what a split takes, border by border."""
    total = sum(o.integer_ms if o.name in integer else o.float_ms for o in operators)
    makers = {tensor: o.name for o in operators for tensor in o.outputs}
    tensors = {tensor for o in operators for tensor in (*o.inputs, *o.outputs)}
    for tensor in tensors:
        is_made_integer = makers.get(tensor) in integer
        readers = [o.name in integer for o in operators if tensor in o.inputs]
        readers += [False] if tensor in outputs else []
        border = borders.get(tensor, Border(0, 0))
        if is_made_integer and not all(readers):
            total += border.dequantize_ms
        if not is_made_integer and any(readers):
            total += border.quantize_ms
        if is_made_integer or any(readers):
            total += border.rounded_ms
    return total


def best_by_trying_all(operators, borders, outputs):
    names = [o.name for o in operators if math.isfinite(o.integer_ms)]
    splits = itertools.chain.from_iterable(
        itertools.combinations(names, size) for size in range(len(names) + 1)
    )
    return min(time_of(set(split), operators, borders, outputs) for split in splits)


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 7))
    ms = st.integers(0, 50).map(lambda value: value / 10)
    operators = []
    for index in range(count):
        before = ["x", *(f"t{i}" for i in range(index))]
        inputs = draw(st.lists(st.sampled_from(before), min_size=1, max_size=3, unique=True))
        integer_ms = draw(st.one_of(ms, st.just(math.inf)))
        operators.append(Operator(f"n{index}", tuple(inputs), (f"t{index}",), draw(ms), integer_ms))
    tensors = ["x", *(f"t{i}" for i in range(count))]
    borders = {tensor: Border(draw(ms), draw(ms), draw(ms)) for tensor in tensors}
    outputs = draw(st.lists(st.sampled_from(tensors[1:]), min_size=1, unique=True))
    return operators, borders, outputs


@given(graphs())
def test_no_other_split_is_cheaper(graph):
    split = cheapest_split(*graph)
    assert split.milliseconds == pytest.approx(best_by_trying_all(*graph), abs=1e-4)
    assert time_of(split.integer, *graph) == pytest.approx(split.milliseconds, abs=1e-4)


def test_a_gain_smaller_than_its_borders_stays_on_floats():
    lonely = Operator("conv", ("x",), ("y",), 1.0, 0.7)
    dear = {"x": Border(0.2, 0.2), "y": Border(0.2, 0.2)}
    assert cheapest_split([lonely], dear, ["y"]).integer == frozenset()
    cheap = {"x": Border(0.1, 0.1), "y": Border(0.1, 0.1)}
    assert cheapest_split([lonely], cheap, ["y"]).integer == {"conv"}


def test_an_operator_without_a_kernel_is_an_island_of_floats():
    chain = [
        Operator("a", ("x",), ("y",), 2.0, 1.0),
        Operator("tanh", ("y",), ("z",), 0.1),
        Operator("b", ("z",), ("w",), 2.0, 1.0),
    ]
    split = cheapest_split(chain, {"y": Border(0.1, 0.1), "z": Border(0.1, 0.1)}, ["w"])
    assert split.integer == {"a", "b"}
    assert split.milliseconds == pytest.approx(1 + 0.1 + 0.1 + 0.1 + 1)


def test_nothing_to_split_costs_nothing():
    assert cheapest_split([], {}, []).milliseconds == 0
