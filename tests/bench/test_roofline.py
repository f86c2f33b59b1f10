import json
import math

import numpy as np
import pytest

from aigc_compress.bench import roofline
from aigc_compress.bench.counting import count_graph, total_cost
from aigc_compress.bench.roofline import Limit, Peaks, limit_of
from aigc_compress.engines.ort import OrtSession

PEAKS = Peaks(float_macs=1e9, integer_macs=4e9, bandwidths=((1 << 16, 1e10), (1 << 30, 1e9)))


class FakeClock:
    """Advance by the given seconds whenever it is read."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def perf_counter(self):
        self.now += self.step
        return self.now


@pytest.mark.parametrize("is_integer", [False, True])
def test_every_kernel_says_the_macs_that_its_graph_counts(is_integer):
    for kernel in roofline._kernels(is_integer=is_integer):
        cost = total_cost(count_graph(kernel.graph.payload, {"x": kernel.x}))
        assert cost["macs"] == kernel.macs
        assert cost["integer_macs"] == (kernel.macs if is_integer else 0)


def test_a_product_and_a_convolution_compute_what_they_should():
    product = roofline._product(2, 3, 5, 4, is_integer=True)
    (y,) = OrtSession(product.graph, threads=1).run({"x": product.x}).values()
    np.testing.assert_array_equal(y, np.full((2, 3, 4), 5))
    convolution = roofline._convolution(8, 5, is_integer=False)
    (y,) = OrtSession(convolution.graph, threads=1).run({"x": convolution.x}).values()
    assert y.shape == (1, 8, 5, 5)
    assert y[0, 0, 2, 2] == 8 * 9  # ones under ones
    assert y[0, 0, 0, 0] == 8 * 4  # a corner sees four taps


def test_the_shortest_call_counts(monkeypatch):
    monkeypatch.setattr(roofline, "time", FakeClock(step=0.02))
    assert roofline._best_seconds(lambda: None) == pytest.approx(0.02)


def test_the_best_kernel_is_the_peak(monkeypatch):
    rates = {False: iter([3e9, 7e9, 5e9]), True: iter([8e9, 2e9, 9e9])}
    monkeypatch.setattr(roofline, "_kernels", lambda *, is_integer: [is_integer] * 3)
    monkeypatch.setattr(roofline, "_macs_per_second", lambda kernel: next(rates[kernel]))
    monkeypatch.setattr(roofline, "_bytes_per_second", float)
    peaks = roofline.measure_peaks()
    assert (peaks.float_macs, peaks.integer_macs) == (7e9, 9e9)


def test_a_part_of_a_model_reads_its_weights_from_where_the_whole_fits():
    cost = {"macs": 0, "integer_macs": 0, "weight_bytes": 1000}
    assert limit_of(cost, PEAKS).milliseconds == pytest.approx(1e3 * 1000 / 1e10)
    part = limit_of(cost, PEAKS, working_set_bytes=1 << 20)
    assert part == Limit(pytest.approx(1e3 * 1000 / 1e9), "weights")


def test_another_set_of_kernels_is_another_file_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = roofline._cache_file()
    monkeypatch.setattr(roofline, "PEAKS_VERSION", roofline.PEAKS_VERSION + 1)
    assert roofline._cache_file() != before
    assert roofline._cache_file().parent == before.parent


def test_peaks_are_read_back_from_the_cache_as_they_were(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(roofline, "measure_peaks", lambda: pytest.fail("the cache was not read"))
    path = roofline._cache_file()
    path.parent.mkdir()
    told = {"float_macs": 1e9, "integer_macs": 4e9, "bandwidths": PEAKS.bandwidths}
    path.write_text(json.dumps(told))
    assert roofline.load_peaks.__wrapped__() == PEAKS


def test_threads_divide_the_arithmetic():
    cost = {"macs": 6_000_000, "integer_macs": 4_000_000, "weight_bytes": 0}
    assert math.isclose(limit_of(cost, PEAKS).milliseconds, 2 + 1)
    assert math.isclose(limit_of(cost, PEAKS, threads=2).milliseconds, 1.5)


@pytest.mark.parametrize(
    ("cost", "bound"),
    [
        ({"macs": 5_000_000, "integer_macs": 0, "weight_bytes": 64}, "compute"),
        ({"macs": 5_000_000, "integer_macs": 5_000_000, "weight_bytes": 64}, "compute"),
        ({"macs": 5_000_000, "integer_macs": 2_000_000, "weight_bytes": 64}, "compute"),
        ({"macs": 64, "integer_macs": 0, "weight_bytes": 1 << 22}, "weights"),
    ],
)
def test_a_model_that_beats_its_limit_raises_the_peak_that_set_it(cost, bound):
    before = limit_of(cost, PEAKS)
    assert before.bound_by == bound
    raised = PEAKS.admitting(cost, before.milliseconds / 1.25)
    assert limit_of(cost, raised).efficiency(before.milliseconds / 1.25) == pytest.approx(1)
    assert PEAKS.admitting(cost, before.milliseconds * 1.01) is PEAKS
    assert (raised.bandwidths == PEAKS.bandwidths) == (bound == "compute")
    if cost["integer_macs"] == 0:
        assert raised.integer_macs == PEAKS.integer_macs


def test_raised_peaks_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    roofline.load_peaks.cache_clear()
    roofline.keep_peaks(PEAKS)
    assert roofline.load_peaks() == PEAKS
    roofline.load_peaks.cache_clear()
