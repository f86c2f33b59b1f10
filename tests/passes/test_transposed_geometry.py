"""What a ConvTranspose node says of its geometry, read as ONNX Runtime reads it."""

import numpy as np
import pytest
from onnx import helper
from transposed_graphs import model_of, run, scattered, whole_numbers

from aigc_compress.passes.transposed import read_geometry


def same_size(x_size, axis):
    """Return (begin, end) for an output of stride times the input, as the operator text says."""
    total = axis.stride * (x_size - 1) + axis.output_padding + axis.reach - axis.stride * x_size
    return total // 2, total - total // 2


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_auto_pad_is_read_as_onnxruntime_reads_it(mode, kernel):
    weight, x = whole_numbers(2, 3, kernel, kernel, seed=1), whole_numbers(1, 2, 5, 6)
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], auto_pad=mode, strides=[2, 2], output_padding=[1, 1]
    )
    geometry = read_geometry(node, weight.shape)
    wanted = run(model_of([node], {"w": weight}, ["N", 2, 5, 6]), x)
    np.testing.assert_array_equal(scattered(x, weight, None, geometry), wanted)
    if mode.startswith("SAME"):
        less, more = same_size(5, geometry.axes[0])
        wanted_pads = (less, more) if mode == "SAME_UPPER" else (more, less)
        assert (geometry.axes[0].begin, geometry.axes[0].end) == wanted_pads


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "NOTSET"])
@pytest.mark.parametrize("output_shape", [[9, 11], [8, 12]])
def test_output_shape_becomes_pads_as_in_onnxruntime(mode, output_shape):
    weight, x = whole_numbers(3, 2, 4, 5, seed=1), whole_numbers(1, 3, 5, 6)
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], auto_pad=mode, strides=[2, 2], output_shape=output_shape
    )
    geometry = read_geometry(node, weight.shape, (5, 6))
    wanted = run(model_of([node], {"w": weight}, ["N", 3, 5, 6]), x)
    np.testing.assert_array_equal(scattered(x, weight, None, geometry), wanted)
    assert "size of its input is not known" in read_geometry(node, weight.shape, (5, None))


@pytest.mark.parametrize(
    ("attributes", "shape", "reason"),
    [
        ({}, (2, 3, 3, 3, 3), "3 spatial axes"),
        ({}, (2, 3), "0 spatial axes"),
        ({"group": 3}, (2, 3, 3), "group is 3"),
        ({"strides": [2]}, (2, 3, 3, 3), "strides has 1 entries; it must have 2"),
        ({"kernel_shape": [5]}, (2, 3, 3), r"kernel_shape is [5]"),
        ({"auto_pad": "SAME"}, (2, 3, 3), "auto_pad is SAME"),
        ({"auto_pad": "SAME_UPPER", "strides": [3]}, (2, 3, 1), "larger than its taps reach"),
        ({"strides": [0]}, (2, 3, 1), "must be at least 1"),
        ({"output_shape": [1, 3, 9]}, (2, 3, 4), "output_shape has 3 entries; it must have 1"),
    ],
)
def test_what_is_not_covered_is_refused_with_the_reason(attributes, shape, reason):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)
    assert reason in read_geometry(node, shape)
