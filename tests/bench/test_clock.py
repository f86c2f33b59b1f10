"""Whose clock times a call."""

import numpy as np
import onnx
import pytest

from aigc_compress.bench.latency import Contestant, LatencyPlan, measure_latency
from aigc_compress.bench.worker import _on_the_device
from aigc_compress.errors import UsageError


class Gpu:
    """A runner with a device whose n-th call takes n microseconds."""

    def run(self, feeds):
        return feeds

    def device_timer(self, feeds):
        return lambda count: [1000 * (n + 1) for n in range(count)]


def test_times_are_what_the_device_tells():
    timed = _on_the_device(Gpu(), "gpu", {})
    assert timed({"calls": 3}) == {"ns": [1000, 2000, 3000], "wall_ns": 6000}


def test_an_engine_without_a_clock_of_its_own_is_refused(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "relu.onnx")
    plan = LatencyPlan(processes=1, blocks=1, clock="device")
    with pytest.raises(UsageError, match="The engine ort has no clock of its own"):
        measure_latency([Contestant(tmp_path / "relu.onnx")], {"x": np.ones(4, np.float32)}, plan)


@pytest.mark.parametrize("other", [{"callers": 2}, {"gap_ms": 1.0}])
def test_the_devices_clock_knows_neither_callers_nor_gaps(other):
    with pytest.raises(UsageError, match="--clock wall"):
        LatencyPlan(clock="device", **other)
