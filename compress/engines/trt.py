"""TensorRT, or TensorRT for RTX: build an engine from an ONNX graph and run it on a GPU.

The two packages have the same interface for what is used here. Engines are strongly typed, as
version 11 demands: FP16 and INT8 are what the graph says, not flags of the builder.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.artifact import Artifact, graph_tensors
from aigc_compress.errors import PassError
from aigc_compress.task import Feeds

from .base import Availability

__all__ = ["TrtEngine", "TrtSession", "build_engine"]

PACKAGES = ("tensorrt", "tensorrt_rtx")
INSTALL = "pip install 'aigc-compress[tensorrt]' (or [tensorrt-rtx] for GeForce RTX)"
LARGEST_BATCH = 64


class TrtEngine:
    """TensorRT on the first CUDA device."""

    name = "trt"
    stage = "onnx"

    def availability(self) -> Availability:
        """Tell what is missing: the package, or a GPU."""
        missing = []
        if not any(importlib.util.find_spec(name) for name in PACKAGES):
            missing.append("neither tensorrt nor tensorrt_rtx is installed")
        if not _has_cuda_device():
            missing.append("torch sees no CUDA device (an NVIDIA GPU with its driver is needed)")
        if missing:
            return Availability(False, " and ".join(missing), INSTALL)
        return Availability(True, f"{_tensorrt().__name__} {_tensorrt().__version__}")

    def load(self, artifact: Artifact, *, threads: int) -> TrtSession:
        """Build the engine and open it; `threads` does not matter on a GPU."""
        plan = build_engine(artifact.payload.SerializeToString())
        return TrtSession(artifact, plan)


def build_engine(model: bytes) -> bytes:
    """Build a serialized engine; dynamic axes may be 1 to 64.

    Works without a GPU with `tensorrt_rtx`; raises PassError with every complaint of the parser.
    """
    trt = _tensorrt()
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse(model):
        complaints = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise PassError(f"TensorRT does not accept this graph: {'; '.join(complaints)}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sizes = [tuple(n if d == -1 else d for d in tensor.shape) for n in (1, 1, LARGEST_BATCH)]
        profile.set_shape(tensor.name, *sizes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PassError("TensorRT could not build an engine from this graph.")
    return bytes(plan)


class TrtSession:
    """An engine with its execution context; buffers live in torch tensors on the GPU."""

    def __init__(self, artifact: Artifact, plan: bytes) -> None:
        import torch

        trt = _tensorrt()
        self.inputs, self.outputs = graph_tensors(artifact.payload)
        self._engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
        if self._engine is None:
            raise PassError("TensorRT does not run this engine on this GPU.")
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Copy the feeds in, execute, copy the outputs back; returns when all is done."""
        import torch

        with torch.cuda.stream(self._stream):
            buffers = {}
            for spec in self.inputs:
                array = np.ascontiguousarray(feeds[spec.name])
                buffers[spec.name] = torch.from_numpy(array).cuda()
                if not self._context.set_input_shape(spec.name, array.shape):
                    raise PassError(
                        f"The engine was built for sizes up to {LARGEST_BATCH}; {spec.name} is"
                        f" {list(array.shape)}."
                    )
            for spec in self.outputs:
                shape = tuple(self._context.get_tensor_shape(spec.name))
                dtype = getattr(torch, spec.dtype)
                buffers[spec.name] = torch.empty(shape, dtype=dtype, device="cuda")
            for name, buffer in buffers.items():
                self._context.set_tensor_address(name, buffer.data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise PassError("TensorRT failed to execute the engine.")
        self._stream.synchronize()
        return {spec.name: buffers[spec.name].cpu().numpy() for spec in self.outputs}


def _tensorrt() -> ModuleType:
    name = next(name for name in PACKAGES if importlib.util.find_spec(name))
    return importlib.import_module(name)


def _has_cuda_device() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
