"""Run ONNX graphs with ONNX Runtime, on the CPU or through another of its execution providers."""

from __future__ import annotations

import ctypes
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aigc_compress.errors import NotOnThisMachineError, PassError, first_line
from aigc_compress.task import Feeds

from .base import Availability
from .cuda import on_gpu, time_launches

if TYPE_CHECKING:
    from onnx import ModelProto

    from aigc_compress.artifact import Artifact

__all__ = ["OrtEngine", "OrtSession", "optimize_offline", "optimized"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
# What a provider with threads of its own is told their number by.
OWN_THREADS = {
    OPENVINO: ("num_of_threads",),
    "XnnpackExecutionProvider": ("intra_op_num_threads",),
}
WANTED = re.compile(rb"libnvinfer\.so\.\d+|nvinfer_\d+\.dll")  # in the provider's own library
TENSORRT_LIBRARIES = "TensorRT of that version, on the path of shared libraries"
# Of TensorProto.DataType, without importing onnx.
FLOAT16, FLOAT8 = 10, {17, 18, 19, 20}
ASSIGNMENT = "session.record_ep_graph_assignment_info"


class OrtSession:
    """A session of ONNX Runtime on a graph or a file; feeds are not checked here."""

    remarks: tuple[str, ...] = ()

    def __init__(
        self,
        model: Artifact | Path,
        *,
        threads: int,
        provider: str = CPU,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        source = str(model) if isinstance(model, Path) else model.payload.SerializeToString()
        options = session_options(threads)
        if not isinstance(model, Path):
            options.graph_optimization_level = _sound_level(model.payload)
        if provider == CPU:
            self._session = create_session(source, options)
        else:
            self._session = _create_session_on(provider, settings or {}, source, options)
            self.remarks = _left_to_cpu(self._session, provider)
        self._names = [each.name for each in self._session.get_outputs()]

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        try:
            values = self._session.run(self._names, feeds)
        except Exception as error:
            raise _translated(error, "run") from error
        return {name: np.asarray(v) for name, v in zip(self._names, values, strict=True)}


class OrtCudaSession(OrtSession):
    """A session on an NVIDIA GPU, on a stream of torch's, so that events can time it."""

    def __init__(self, model: Artifact | Path, *, threads: int, provider: str) -> None:
        import torch

        onnxruntime.preload_dlls()  # CUDA's libraries where torch or pip put them
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        settings = {"user_compute_stream": str(self._stream.cuda_stream)}
        if provider == CUDA:
            settings["use_tf32"] = "0"  # see `exact_float32`
        super().__init__(model, threads=threads, provider=provider, settings=settings)

    def device_timer(self, feeds: Feeds) -> Callable[[int], list[int]]:
        """See `HasDeviceClock`."""
        binding = self._session.io_binding()
        for name, value in feeds.items():
            placed = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), "cuda")
            binding.bind_ortvalue_input(name, placed)
        for name in self._names:
            binding.bind_output(name, "cuda")
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")

        def launch() -> None:
            self._session.run_with_iobinding(binding, options)

        return lambda count: time_launches(launch, count, self._stream)


@dataclass(frozen=True)
class OrtEngine:
    """ONNX Runtime through one of its execution providers.

    Attributes:
        name: what it is called.
        provider: the execution provider; nodes that it does not take run on the CPU.
        install: what brings the provider.
    """

    name: str = "ort"
    provider: str = CPU
    install: str = ""
    stage: str = "onnx"

    def availability(self) -> Availability:
        """Tell the version: the CPU's provider is a part of the base install, others are not."""
        version = f"onnxruntime {onnxruntime.__version__}"
        short = self.provider.removesuffix("ExecutionProvider")
        if self.provider not in onnxruntime.get_available_providers():
            return Availability(False, f"this {version} has no provider {short}", self.install)
        missing = _missing_library(self.provider)
        if missing:
            return Availability(
                False, f"{missing}, which {short} needs, is not installed", TENSORRT_LIBRARIES
            )
        detail = f"{version}, {short}"
        return on_gpu(detail) if self.is_on_gpu else Availability(True, detail)

    @property
    def is_on_gpu(self) -> bool:
        """Whether the provider is one of a GPU's."""
        return self.provider in (CUDA, TENSORRT)

    @property
    def int8_pass(self) -> str:
        """A provider with a compiler behind it wants what that compiler wants."""
        return {OPENVINO: "openvino", TENSORRT: "tensorrt"}.get(self.provider, "quantize")

    def load(self, artifact: Artifact, *, threads: int) -> OrtSession:
        """Load a graph; raises PassError where ONNX Runtime refuses it, or should refuse it."""
        if self.provider in (CPU, CUDA) and _has_float8(artifact.payload):
            raise PassError(
                f"ONNX Runtime {onnxruntime.__version__} does not run this graph as it is written:"
                " it drops a Relu before FP8. Run it with --engine trt."
            )
        return self._opened(artifact, threads)

    def load_file(self, path: Path, *, threads: int) -> OrtSession:
        """Load a graph from its file; raises PassError where ONNX Runtime refuses it."""
        return self._opened(path, threads)

    def _opened(self, model: Artifact | Path, threads: int) -> OrtSession:
        if self.is_on_gpu:
            return OrtCudaSession(model, threads=threads, provider=self.provider)
        settings = {each: str(threads) for each in OWN_THREADS.get(self.provider, ())}
        return OrtSession(model, threads=threads, provider=self.provider, settings=settings)


def _missing_library(provider: str) -> str | None:
    """Return the library of TensorRT that a provider wants and this machine has not, or None.

    A build of ONNX Runtime has the provider whether or not TensorRT is there.
    """
    if provider != TENSORRT:
        return None
    folder = Path(onnxruntime.__file__).parent / "capi"
    path = next(folder.glob("*onnxruntime_providers_tensorrt.*"), None)
    if path is None:
        return "its own library"
    for name in {*WANTED.findall(path.read_bytes())}:
        try:
            ctypes.CDLL(name.decode())
        except OSError:
            return str(name.decode())
    return None


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return options with explicit threads, sequential execution and a silent log."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # failures are raised; the log would say them twice
    return options


def create_session(
    model: bytes | str, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """Create a CPU session; raises PassError with ONNX Runtime's own first line."""
    try:
        return onnxruntime.InferenceSession(model, options, providers=[CPU])
    except Exception as error:
        raise _translated(error, "load") from error


def _create_session_on(
    provider: str,
    settings: Mapping[str, str],
    model: bytes | str,
    options: onnxruntime.SessionOptions,
) -> onnxruntime.InferenceSession:
    """Create a session on another provider than the CPU's.

    Raises:
        NotOnThisMachineError: the provider does not start here; ONNX Runtime would go on without.
        PassError: the graph is refused.
    """
    onnxruntime.set_default_logger_severity(4)  # what fails is raised
    options.add_session_config_entry(ASSIGNMENT, "1")
    levels = onnxruntime.GraphOptimizationLevel
    if options.graph_optimization_level == levels.ORT_ENABLE_ALL:
        # What lies above is blocked layouts, which are for the CPU alone, and break float16 there.
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
    wanted: list[Any] = [(provider, dict(settings)), CPU]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say of a missing provider is raised below
            session = onnxruntime.InferenceSession(
                model, options, providers=wanted, enable_fallback=0
            )
    except Exception as error:
        raise _translated(error, "load") from error
    if provider not in session.get_providers():
        raise NotOnThisMachineError(
            f"ONNX Runtime has {provider}, but it does not start here: one of the libraries that it"
            " loads is missing, or of another version."
        )
    return session


def _sound_level(model: ModelProto) -> onnxruntime.GraphOptimizationLevel:
    """Return how far ONNX Runtime (1.32) optimizes this graph without breaking it.

    Before FP8 it drops a Relu, as it may before uint8, whose zero is the lowest value; and looking
    for blocked layouts with an LSTM of float16 ends the process.
    """
    levels = onnxruntime.GraphOptimizationLevel
    if _has_float8(model):
        return levels.ORT_DISABLE_ALL
    types = {tensor.data_type for tensor in model.graph.initializer}
    is_recurrent = any(node.op_type in ("GRU", "LSTM", "RNN") for node in model.graph.node)
    half = FLOAT16 in types and is_recurrent
    return levels.ORT_ENABLE_EXTENDED if half else levels.ORT_ENABLE_ALL


def _has_float8(model: ModelProto) -> bool:
    """Whether 8-bit floats stand in the main graph: stored, or made by an attribute."""
    attributes = [each for node in model.graph.node for each in node.attribute]
    return any(
        FLOAT8.intersection(types)
        for types in (
            (tensor.data_type for tensor in model.graph.initializer),
            (each.t.data_type for each in attributes if each.name == "value"),
            (each.i for each in attributes if each.name in ("output_dtype", "to")),
        )
    )


def _left_to_cpu(session: onnxruntime.InferenceSession, provider: str) -> tuple[str, ...]:
    """Return what is to be said of nodes that a provider left to the CPU."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return ()  # before version 1.24
    nodes: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name != provider:
            nodes.update(node.op_type for node in part.get_nodes())
    if not nodes:
        return ()
    kinds = ", ".join(f"{count} {op}" for op, count in nodes.most_common())
    return (f"{provider} left {nodes.total()} nodes to the CPU: {kinds}.",)


def _translated(error: Exception, verb: str) -> Exception:
    """Name ONNX Runtime's failure in one line; its exceptions have no common base of their own."""
    is_its_own = type(error).__module__.startswith("onnxruntime")
    if not is_its_own and not isinstance(error, ValueError | RuntimeError):
        return error
    return PassError(f"ONNX Runtime does not {verb} this graph: {first_line(error)}")


def optimized(model: ModelProto) -> ModelProto:
    """Return the graph as ONNX Runtime runs it, up to layouts of this very CPU."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        optimize_offline(model.SerializeToString(), path, level="extended")
        return onnx.load(path)


def optimize_offline(model: bytes, path: Path, *, level: Literal["basic", "extended"]) -> None:
    """Write the graph as ONNX Runtime would run it after optimizations of `level` to `path`."""
    options = session_options(1)
    levels = onnxruntime.GraphOptimizationLevel
    is_basic = level == "basic"
    options.graph_optimization_level = (
        levels.ORT_ENABLE_BASIC if is_basic else levels.ORT_ENABLE_EXTENDED
    )
    options.optimized_model_filepath = str(path)
    create_session(model, options)
