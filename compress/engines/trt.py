"""TensorRT, or TensorRT for RTX: build an engine from an ONNX graph and run it on a GPU.

The two packages have the same interface for what is used here. Engines are strongly typed, as
version 11 demands: FP16 and INT8 are what the graph says, not flags of the builder.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.errors import NotOnThisMachineError, PassError, UsageError, unknown_name
from aigc_compress.task import Feeds

from .base import Availability
from .cuda import NO_DEVICE, compute_capability, has_cuda_device, time_launches

if TYPE_CHECKING:
    from aigc_compress.artifact import Artifact

__all__ = [
    "LARGEST_BATCH",
    "PORTABLE",
    "BuildOptions",
    "Sizes",
    "TrtEngine",
    "TrtSession",
    "build_engine",
    "builder_version",
]

PACKAGES = ("tensorrt", "tensorrt_rtx")
INSTALL = "pip install 'aigc-compress[tensorrt]' (or [tensorrt-rtx] for GeForce RTX)"
LARGEST_BATCH = 64
PORTABLE = "portable"
Sizes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # least, usual and most


@dataclass(frozen=True)
class BuildOptions:
    """For what an engine is built.

    Attributes:
        device: `portable`, or a compute capability like `sm_89`.
        profiles: least, usual and most sizes of inputs with dynamic axes; others are 1, 1 and 64.
    """

    device: str = PORTABLE
    profiles: Mapping[str, Sizes] = field(default_factory=dict)


class TrtEngine:
    """TensorRT on the first CUDA device."""

    name = "trt"
    stage = "onnx"
    is_on_gpu = True
    int8_pass = "tensorrt"

    def availability(self) -> Availability:
        """Tell what is missing: the package, or a GPU."""
        missing, how = [], ""
        if not any(importlib.util.find_spec(name) for name in PACKAGES):
            missing, how = ["neither tensorrt nor tensorrt_rtx is installed"], INSTALL
        if not has_cuda_device():
            missing.append(f"{NO_DEVICE}; `export` and `bench --build-only` need none")
        if missing:
            return Availability(False, " and ".join(missing), how)
        package, version = builder_version()
        major, minor = compute_capability()
        targets = getattr(_tensorrt(), "ComputeCapability", None)
        if targets is not None and f"SM{major}{minor}" not in targets.__members__:
            return Availability(
                False,
                f"{package} {version} does not run on GPUs of compute capability {major}.{minor}",
                "pip install 'aigc-compress[tensorrt]'",
            )
        return Availability(True, f"{package} {version}")

    def load(self, artifact: Artifact, *, threads: int) -> TrtSession:
        """Build the engine and open it; `threads` does not matter on a GPU."""
        plan = build_engine(artifact.payload.SerializeToString())
        return TrtSession(artifact, plan)


def builder_version() -> tuple[str, str]:
    """Return name and version of the TensorRT that builds here; raises NotOnThisMachineError."""
    trt = _tensorrt()
    return trt.__name__, str(trt.__version__)


def build_engine(model: bytes, options: BuildOptions | None = None) -> bytes:
    """Build a serialized engine.

    With `tensorrt_rtx` this needs no GPU.

    Raises:
        NotOnThisMachineError: TensorRT is not installed, or cannot build here.
        UsageError: the device or a profile does not fit.
        PassError: TensorRT refuses the graph; the message holds every complaint.
    """
    builder, network, config, log = _prepared(model, options or BuildOptions())
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        told = log.errors[0] if log.errors else "it does not say why"
        raise PassError(f"TensorRT could not build an engine from this graph: {told}")
    return bytes(plan)


def check_engine(model: bytes, options: BuildOptions) -> None:
    """Raise what `build_engine` would for this graph, device and profile, without building."""
    _prepared(model, options)


def _prepared(model: bytes, options: BuildOptions) -> tuple[Any, Any, Any, Any]:
    """Return a builder, the parsed network, a configuration, and what keeps the complaints."""
    trt = _tensorrt()
    log = _complaints(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        complaints = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise PassError(f"TensorRT does not accept this graph: {'; '.join(complaints)}")
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, options))
    config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)  # where weights are 2:4 and it is faster
    config.clear_flag(trt.BuilderFlag.TF32)  # see `cuda.exact_float32`
    _aim(trt, config, options.device)
    return builder, network, config, log


def _complaints(trt: ModuleType) -> Any:
    """Return a logger that keeps errors for our own message instead of printing them."""

    class Complaints(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Complaints()


def _profile(builder: Any, network: Any, options: BuildOptions) -> Any:
    profile = builder.create_optimization_profile()
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    unknown = set(options.profiles) - {tensor.name for tensor in tensors}
    if unknown:
        raise unknown_name("input", min(unknown), [tensor.name for tensor in tensors])
    for tensor in tensors:
        shape = tuple(tensor.shape)
        usual = [tuple(n if d == -1 else d for d in shape) for n in (1, 1, LARGEST_BATCH)]
        sizes = options.profiles.get(tensor.name, usual)
        for row in sizes:
            if len(row) != len(shape) or any(d not in (-1, n) for d, n in zip(shape, row)):  # noqa: B905
                raise UsageError(f"{tensor.name} is {list(shape)}; a profile has {list(row)}.")
        profile.set_shape(tensor.name, *sizes)
    return profile


def _aim(trt: ModuleType, config: Any, device: str) -> None:
    """Set the GPU that the engine is for; raises UsageError where there is no such."""
    if device == PORTABLE:
        if trt.__name__ == "tensorrt":
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        return
    known = {
        f"sm_{name.removeprefix('SM')}": value
        for name, value in getattr(trt, "ComputeCapability", _NoTargets).__members__.items()
        if name.startswith("SM")
    }
    if device not in known:
        if not known:
            raise UsageError("TensorRT builds for the GPU that it runs on: --device portable.")
        raise unknown_name("device", device, [PORTABLE, *known])
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[device], 0)


class _NoTargets:
    __members__: Mapping[str, Any] = {}


class TrtSession:
    """An engine with its execution context; buffers live in torch tensors on the GPU."""

    def __init__(self, artifact: Artifact, plan: bytes) -> None:
        import torch

        from aigc_compress.artifact import graph_tensors

        trt = _tensorrt()
        self.inputs, self.outputs = graph_tensors(artifact.payload)
        self._engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
        if self._engine is None:
            raise PassError("TensorRT does not run this engine on this GPU.")
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Copy the feeds in, execute, copy the outputs back; returns when all is done."""
        with self._lock:  # an execution context serves one call at a time
            buffers = self._placed(feeds)
            self._execute()
            self._stream.synchronize()
        return {spec.name: buffers[spec.name].cpu().numpy() for spec in self.outputs}

    def device_timer(self, feeds: Feeds) -> Callable[[int], list[int]]:
        """See `HasDeviceClock`."""
        buffers = self._placed(feeds)

        def timed(count: int) -> list[int]:
            spent = time_launches(self._execute, count, self._stream)
            assert buffers  # they are the memory that the engine writes to
            return spent

        return timed

    def _placed(self, feeds: Feeds) -> dict[str, Any]:
        """Return tensors on the GPU, inputs filled, that the context knows the addresses of."""
        import torch

        if set(feeds) != {spec.name for spec in self.inputs}:
            wanted = sorted(spec.name for spec in self.inputs)
            raise PassError(f"TensorRT does not run this engine: it reads {wanted}, not {[*feeds]}")
        buffers = {}
        with torch.cuda.stream(self._stream):
            for spec in self.inputs:
                array = np.ascontiguousarray(feeds[spec.name])
                buffers[spec.name] = torch.from_numpy(array).cuda()
                if not self._context.set_input_shape(spec.name, array.shape):
                    raise PassError(
                        f"TensorRT does not run this engine: it was built for {spec.name}"
                        f" {list(spec.shape)} in sizes up to {LARGEST_BATCH}, not"
                        f" {list(array.shape)}."
                    )
            for spec in self.outputs:
                shape = tuple(self._context.get_tensor_shape(spec.name))
                dtype = getattr(torch, spec.dtype)
                buffers[spec.name] = torch.empty(shape, dtype=dtype, device="cuda")
        for name, buffer in buffers.items():
            self._context.set_tensor_address(name, buffer.data_ptr())
        return buffers

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise PassError("TensorRT failed to execute the engine.")


def _tensorrt() -> ModuleType:
    name = next((name for name in PACKAGES if importlib.util.find_spec(name)), None)
    if name is None:
        raise NotOnThisMachineError(f"TensorRT is not installed. To install: {INSTALL}")
    return importlib.import_module(name)
