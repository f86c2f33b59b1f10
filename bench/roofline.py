"""The limit that this machine sets: peak multiply-accumulates and bandwidth (Williams et al. 2009).

Peaks are measured, not read from a data sheet, with the engine's own matrix products, and cached
under the machine's fingerprint. A model cannot finish before its MACs are done at the peak, nor
before its weights are read once at the bandwidth of the memory level that they fit into:

    limit = max(float MACs / float peak + integer MACs / integer peak, bytes / bandwidth)
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.machine import cpu_flags, cpu_name, versions
from aigc_compress.storage import write_bytes

from .trust import Watch

__all__ = ["Limit", "Peaks", "limit_of", "load_peaks", "measure_peaks"]

SIDES = (128, 256, 512, 1024)
WORKING_SETS = tuple(1 << power for power in range(16, 28))  # 64 KiB to 128 MiB
ROUND_SECONDS = 0.08
ROUNDS = 3


@dataclass(frozen=True)
class Peaks:
    """What one thread of this machine can do at best.

    Attributes:
        float_macs: FP32 multiply-accumulates per second.
        integer_macs: u8 x s8 multiply-accumulates per second.
        bandwidths: bytes read per second, by size of the working set in bytes.
    """

    float_macs: float
    integer_macs: float
    bandwidths: tuple[tuple[int, float], ...]

    def bandwidth(self, working_set_bytes: int) -> float:
        """Return the best bandwidth measured at this working set or any larger one."""
        fitting = [rate for size, rate in self.bandwidths if size >= working_set_bytes]
        return max(fitting) if fitting else self.bandwidths[-1][1]


@dataclass(frozen=True)
class Limit:
    """The least time that a model can take, and what sets it."""

    milliseconds: float
    bound_by: str

    def efficiency(self, measured_ms: float) -> float:
        """Return limit over measured time: 1 is the machine's best."""
        return self.milliseconds / measured_ms


def limit_of(cost: Mapping[str, int], peaks: Peaks, *, threads: int = 1) -> Limit:
    """Return the roofline limit of a model's total cost (see `counting.total_cost`).

    More threads multiply the compute peak; the bandwidth stays that of one thread's working set,
    so with several threads the limit of a weight-bound model is on the high side.
    """
    floats = cost["macs"] - cost["integer_macs"]
    compute = floats / peaks.float_macs + cost["integer_macs"] / peaks.integer_macs
    compute /= threads
    weights = cost["weight_bytes"]
    memory = weights / peaks.bandwidth(weights) if weights else 0.0
    bound = "compute" if compute >= memory else "weights"
    return Limit(1e3 * max(compute, memory), bound)


@functools.cache
def load_peaks() -> Peaks:
    """Return this machine's peaks from the cache, measured now (some ten seconds) if missing.

    Peaks measured while other work ran are too low; they are used once and not kept.
    """
    path = _cache_file()
    try:
        values = json.loads(path.read_text())
        pairs = tuple((int(size), float(rate)) for size, rate in values["bandwidths"])
        return Peaks(float(values["float_macs"]), float(values["integer_macs"]), pairs)
    except (OSError, ValueError, KeyError, TypeError):
        watch = Watch()
        peaks = measure_peaks()
        if not watch.stop().complaint:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, json.dumps(asdict(peaks)).encode())
        return peaks


def measure_peaks() -> Peaks:
    """Measure the peaks of one thread: the best of several sizes and rounds."""
    return Peaks(
        float_macs=max(_macs_per_second(side, is_integer=False) for side in SIDES),
        integer_macs=max(_macs_per_second(side, is_integer=True) for side in SIDES),
        bandwidths=tuple((size, _bytes_per_second(size)) for size in WORKING_SETS),
    )


def _macs_per_second(side: int, *, is_integer: bool) -> float:
    session = OrtSession(_product(side, is_integer=is_integer), threads=1)
    dtype = np.uint8 if is_integer else np.float32
    feeds = {"x": np.ones((side, side), dtype)}
    return side**3 / _best_seconds(lambda: session.run(feeds))


def _bytes_per_second(size: int) -> float:
    """Read with a dot product of a vector with itself: one stream, one pass."""
    values = np.ones(size // 4, np.float32)
    return size / _best_seconds(lambda: np.dot(values, values))


def _best_seconds(call: Callable[[], Any]) -> float:
    """Return the shortest time of one call over rounds of `ROUND_SECONDS`."""
    call()
    best = float("inf")
    for _ in range(ROUNDS):
        deadline = time.perf_counter() + ROUND_SECONDS
        while (start := time.perf_counter()) < deadline:
            call()
            best = min(best, time.perf_counter() - start)
    return best


def _product(side: int, *, is_integer: bool) -> Artifact:
    """Return the graph y = x w of square matrices, FP32 or u8 x s8 -> s32."""
    weights = np.ones((side, side), np.int8 if is_integer else np.float32)
    op = "MatMulInteger" if is_integer else "MatMul"
    x_type = TensorProto.UINT8 if is_integer else TensorProto.FLOAT
    y_type = TensorProto.INT32 if is_integer else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", x_type, [side, side])],
        [helper.make_tensor_value_info("y", y_type, [side, side])],
        [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    return Artifact("onnx", helper.make_model(graph, opset_imports=opsets, ir_version=8))


def _cache_file() -> Path:
    known = versions()
    told = [cpu_name(), sorted(cpu_flags()), known["onnxruntime"], known["numpy"]]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "aigc-compress" / f"peaks-{key}.json"
