"""The table of engines; to add one, write its file and name it here."""

from __future__ import annotations

from collections.abc import Mapping

from aigc_compress.errors import NotOnThisMachineError, unknown_name

from .base import Availability, Engine, HasDeviceClock, LoadsFiles, Remarks, check_feeds
from .openvino import OpenVinoEngine
from .ort import OrtEngine
from .torch import TorchEngine
from .trt import TrtEngine

__all__ = [
    "ENGINES",
    "Availability",
    "Engine",
    "HasDeviceClock",
    "LoadsFiles",
    "Remarks",
    "check_feeds",
    "get_engine",
]

GPU_BUILD = "pip install onnxruntime-gpu (in place of onnxruntime)"
OPENVINO_BUILD = "pip install onnxruntime-openvino (in place of onnxruntime)"

TABLE: tuple[Engine, ...] = (
    OrtEngine(),
    OrtEngine("ort-openvino", "OpenVINOExecutionProvider", OPENVINO_BUILD),
    OrtEngine("ort-xnnpack", "XnnpackExecutionProvider", "a build of ONNX Runtime with XNNPACK"),
    OrtEngine("ort-cuda", "CUDAExecutionProvider", GPU_BUILD),
    OrtEngine("ort-tensorrt", "TensorrtExecutionProvider", GPU_BUILD),
    OpenVinoEngine(),
    OpenVinoEngine("openvino-throughput", "THROUGHPUT"),
    TorchEngine(),
    TorchEngine("torch-compile", compiles=True),
    TorchEngine("torch-cuda", "cuda"),
    TorchEngine("torch-cuda-graph", "cuda", records=True),
    TorchEngine("torch-cuda-compile", "cuda", compiles=True),
    TorchEngine("torch-cuda-compile-graph", "cuda", compiles=True, records=True),
    TrtEngine(),
)
ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in TABLE}


def get_engine(name: str) -> Engine:
    """Return an engine that can run here.

    Raises:
        UsageError: there is no engine of that name.
        NotOnThisMachineError: it cannot run here; the message tells what is missing.
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    found = ENGINES[name].availability()
    if not found.is_available:
        how = f" To install: {found.install}" if found.install else ""
        raise NotOnThisMachineError(f"The engine {name} cannot run here: {found.detail}.{how}")
    return ENGINES[name]
