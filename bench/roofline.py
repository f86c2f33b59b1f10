"""The limit that this machine sets: peak multiply-accumulates and bandwidth (Williams et al. 2009).

Peaks are measured, not read from a data sheet, with the engine's own kernels, and cached under the
machine's fingerprint. Which kernel comes nearest to the arithmetic peak depends on how its operands
fit the caches and registers: blocked convolutions run faster here than any square product of
matrices. So products of several shapes and convolutions like those of a ResNet are timed, and the
best of all is the peak. A model cannot finish before its MACs are done at the peak, nor
before its weights are read once at the bandwidth of the memory level that they fit into:

    limit = max(float MACs / float peak + integer MACs / integer peak, bytes / bandwidth)
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.machine import cpu_flags, cpu_name, versions
from aigc_compress.storage import write_bytes

from .trust import Watch

__all__ = ["Limit", "Peaks", "keep_peaks", "limit_of", "load_peaks", "measure_peaks"]

PEAKS_VERSION = 2  # of the set of kernels below; part of the cache's key
# Products (batch, m, k, n): squares, those of unrolled 3x3 convolutions, small ones in a batch
# whose operands stay in the cache.
PRODUCTS = (
    (1, 128, 128, 128),
    (1, 256, 256, 256),
    (1, 512, 512, 512),
    (1, 1024, 1024, 1024),
    (1, 196, 1152, 128),
    (1, 784, 1152, 128),
    (1, 784, 576, 64),
    (1, 48, 256, 1024),
    (32, 48, 128, 64),
)
CONVOLUTIONS = ((32, 28), (64, 14), (64, 28), (128, 7), (128, 14), (128, 28))  # channels, side
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

    def admitting(
        self,
        cost: Mapping[str, int],
        measured_ms: float,
        *,
        threads: int = 1,
        working_set_bytes: int | None = None,
    ) -> Peaks:
        """Return peaks raised so far that what was measured is no faster than its limit.

        A model's kernel may fit this machine better than every one that the peaks were measured
        with; then the peak was too low, and the model shows it. Arguments as for `limit_of`.
        """
        limit = limit_of(cost, self, threads=threads, working_set_bytes=working_set_bytes)
        excess = limit.efficiency(measured_ms)
        if excess <= 1:
            return self
        if limit.bound_by == "weights":
            rates = tuple((size, rate * excess) for size, rate in self.bandwidths)
            return replace(self, bandwidths=rates)
        has_floats = cost["macs"] > cost["integer_macs"]
        return replace(
            self,
            float_macs=self.float_macs * (excess if has_floats else 1),
            integer_macs=self.integer_macs * (excess if cost["integer_macs"] else 1),
        )


@dataclass(frozen=True)
class Limit:
    """The least time that a model can take, and what sets it."""

    milliseconds: float
    bound_by: str

    def efficiency(self, measured_ms: float) -> float:
        """Return limit over measured time: 1 is the machine's best."""
        return self.milliseconds / measured_ms


def limit_of(
    cost: Mapping[str, int],
    peaks: Peaks,
    *,
    threads: int = 1,
    working_set_bytes: int | None = None,
) -> Limit:
    """Return the roofline limit of a cost (see `counting.total_cost`).

    More threads multiply the compute peak; the bandwidth stays that of one thread's working set,
    so with several threads the limit of a weight-bound model is on the high side.

    Args:
        cost: MACs, integer ones among them, and bytes of weights.
        peaks: what the machine can do.
        threads: threads that share the arithmetic.
        working_set_bytes: what a call reads in all, where `cost` is a part of it; it decides which
            memory the weights come from. None takes the weights of `cost`.
    """
    floats = cost["macs"] - cost["integer_macs"]
    compute = floats / peaks.float_macs + cost["integer_macs"] / peaks.integer_macs
    compute /= threads
    weights = cost["weight_bytes"]
    memory = weights / peaks.bandwidth(working_set_bytes or weights) if weights else 0.0
    bound = "compute" if compute >= memory else "weights"
    return Limit(1e3 * max(compute, memory), bound)


@functools.cache
def load_peaks() -> Peaks:
    """Return this machine's peaks from the cache, measured now (some ten seconds) if missing.

    Peaks measured while other work ran are too low; they are used once and not kept.
    """
    try:
        values = json.loads(_cache_file().read_text())
        pairs = tuple((int(size), float(rate)) for size, rate in values["bandwidths"])
        return Peaks(float(values["float_macs"]), float(values["integer_macs"]), pairs)
    except (OSError, ValueError, KeyError, TypeError):
        watch = Watch()
        peaks = measure_peaks()
        if not watch.stop().complaint:
            _write_peaks(peaks)
        return peaks


def keep_peaks(peaks: Peaks) -> None:
    """Let `load_peaks` return these from now on, in this process and in later ones."""
    _write_peaks(peaks)
    load_peaks.cache_clear()


def _write_peaks(peaks: Peaks) -> None:
    path = _cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(asdict(peaks)).encode())


def measure_peaks() -> Peaks:
    """Measure the peaks of one thread: the best of all kernels and rounds."""
    return Peaks(
        float_macs=max(_macs_per_second(kernel) for kernel in _kernels(is_integer=False)),
        integer_macs=max(_macs_per_second(kernel) for kernel in _kernels(is_integer=True)),
        bandwidths=tuple((size, _bytes_per_second(size)) for size in WORKING_SETS),
    )


@dataclass(frozen=True)
class _Kernel:
    """A graph of one operator on input `x`, and the MACs of one call."""

    graph: Artifact
    x: NDArray[Any]
    macs: int


def _kernels(*, is_integer: bool) -> Iterator[_Kernel]:
    for shape in PRODUCTS:
        yield _product(*shape, is_integer=is_integer)
    for channels, side in CONVOLUTIONS:
        yield _convolution(channels, side, is_integer=is_integer)


def _macs_per_second(kernel: _Kernel) -> float:
    session = OrtSession(kernel.graph, threads=1)
    feeds = {"x": kernel.x}
    return kernel.macs / _best_seconds(lambda: session.run(feeds))


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


def _product(batch: int, m: int, k: int, n: int, *, is_integer: bool) -> _Kernel:
    """Return y = x w with x (batch, m, k) and w (k, n), FP32 or u8 x s8 -> s32."""
    shape = [batch, m, k] if batch > 1 else [m, k]
    x = np.ones(shape, np.uint8 if is_integer else np.float32)
    w = np.ones((k, n), np.int8 if is_integer else np.float32)
    op = "MatMulInteger" if is_integer else "MatMul"
    y_type = TensorProto.INT32 if is_integer else TensorProto.FLOAT
    node = helper.make_node(op, ["x", "w"], ["y"])
    y = helper.make_tensor_value_info("y", y_type, [*shape[:-1], n])
    return _Kernel(_graph(node, x, y, {"w": w}), x, batch * m * k * n)


def _convolution(channels: int, side: int, *, is_integer: bool) -> _Kernel:
    """Return a padded 3x3 Conv of x (1, channels, side, side), FP32 or u8 x s8 -> u8."""
    shape = [1, channels, side, side]
    dtype, w_dtype = (np.uint8, np.int8) if is_integer else (np.float32, np.float32)
    x, w = np.ones(shape, dtype), np.ones((channels, channels, 3, 3), w_dtype)
    constants: dict[str, NDArray[Any]] = {"w": w}
    op, inputs = "Conv", ["x", "w"]
    if is_integer:
        op = "QLinearConv"
        inputs = ["x", "scale", "x_zero", "w", "scale", "w_zero", "scale", "x_zero"]
        constants |= {"scale": np.array(0.1, np.float32)}
        constants |= {"x_zero": np.array(0, np.uint8), "w_zero": np.array(0, np.int8)}
    node = helper.make_node(op, inputs, ["y"], pads=[1, 1, 1, 1])
    y_type = TensorProto.UINT8 if is_integer else TensorProto.FLOAT
    y = helper.make_tensor_value_info("y", y_type, shape)
    return _Kernel(_graph(node, x, y, constants), x, side**2 * channels**2 * 9)


def _graph(
    node: NodeProto, x: NDArray[Any], y: ValueInfoProto, constants: Mapping[str, NDArray[Any]]
) -> Artifact:
    x_type = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        node.op_type,
        [helper.make_tensor_value_info("x", x_type, x.shape)],
        [y],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return Artifact("onnx", helper.make_model(graph, opset_imports=opsets, ir_version=8))


def _cache_file() -> Path:
    known = versions()
    told = [PEAKS_VERSION, cpu_name(), sorted(cpu_flags()), known["onnxruntime"], known["numpy"]]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "aigc-compress" / f"peaks-{key}.json"
