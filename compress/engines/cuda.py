"""What engines on an NVIDIA GPU share: whether one is here, its name, and its clock."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

from .base import Availability

__all__ = [
    "NO_DEVICE",
    "compute_capability",
    "describe_gpu",
    "exact_float32",
    "gpu_target",
    "has_cuda_device",
    "on_gpu",
    "time_launches",
]

NO_DEVICE = "torch sees no CUDA device (an NVIDIA GPU with its driver, and a torch for CUDA)"


def has_cuda_device() -> bool:
    """Whether torch is installed and sees a GPU."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def compute_capability() -> tuple[int, int]:
    """Return the compute capability of the first CUDA device, like (8, 9)."""
    import torch

    return torch.cuda.get_device_capability()


def gpu_target() -> str:
    """Return the compute capability of the first CUDA device as a target, like `sm_89`."""
    major, minor = compute_capability()
    return f"sm_{major}{minor}"


def exact_float32() -> None:
    """Keep torch, in this whole process, from rounding float32 products to TF32's 10 bits.

    Every engine here computes FP32 as it is written, so that they can be compared; where fewer bits
    will do, FP16 has as many as TF32.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    warnings.filterwarnings("ignore", "TensorFloat32")  # that it is faster, at every compilation


def on_gpu(detail: str) -> Availability:
    """Return that an engine runs on the first CUDA device, or that there is none."""
    if not has_cuda_device():
        return Availability(False, NO_DEVICE)
    import torch

    return Availability(True, f"{detail}, {torch.cuda.get_device_name()}")


def describe_gpu() -> dict[str, str]:
    """Return name, compute capability and CUDA of the first CUDA device; nothing without one."""
    if not has_cuda_device():
        return {}
    import torch

    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_target": gpu_target(),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "torch": torch.__version__,
    }


def time_launches(launch: Callable[[], object], count: int, stream: Any) -> list[int]:
    """Return nanoseconds of each of `count` launches between events on a CUDA stream.

    The launches follow each other without waiting, as those of a busy server do.
    """
    import torch

    def event() -> Any:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    events = [(event(), event()) for _ in range(count)]
    for start, end in events:
        start.record(stream)
        launch()
        end.record(stream)
    stream.synchronize()
    return [round(start.elapsed_time(end) * 1e6) for start, end in events]
