"""What this machine is: processor, instruction sets, threads, versions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Any

from .schemes import Scheme, scheme_for

__all__ = [
    "cpu_flags",
    "cpu_name",
    "describe_machine",
    "has_fast_bf16",
    "machine_scheme",
    "versions",
]

PACKAGES = (
    "aigc-compress",
    "numpy",
    "onnxruntime",
    "onnx",
    "onnxscript",
    "torch",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "neural-compressor",
)
# Names of the flags as Linux and macOS print them.
NOTED_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
)


@functools.cache
def cpu_info() -> Mapping[str, Any]:
    """Return py-cpuinfo's description of the processor; empty where it is not installed."""
    try:
        import cpuinfo
    except ModuleNotFoundError:
        return {}
    return dict(cpuinfo.get_cpu_info())


def cpu_flags() -> frozenset[str]:
    """Return the instruction-set flags of the processor, in lower case."""
    return frozenset(str(flag).lower() for flag in cpu_info().get("flags", ()))


def cpu_name() -> str:
    """Return the processor's brand name."""
    return str(cpu_info().get("brand_raw", platform.processor() or platform.machine()))


def machine_scheme() -> Scheme:
    """Return the INT8 scheme that fits this processor."""
    return scheme_for(cpu_flags(), platform.machine())


def has_fast_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})


def versions() -> dict[str, str | None]:
    """Return the installed version of every package that matters, None where it is missing."""
    return {name: _version(name) for name in PACKAGES}


def describe_machine() -> dict[str, Any]:
    """Return the processor, noted flags, cores, caches, memory (bytes), system and versions.

    Flags are None where py-cpuinfo is not installed, memory is None where psutil is not.
    """
    return {
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "flags": [f for f in NOTED_FLAGS if f in cpu_flags()] if cpu_info() else None,
        "cores": os.cpu_count(),
        "caches": {
            name: cpu_info().get(f"{name}_size") or None
            for name in ("l1_data_cache", "l2_cache", "l3_cache")
        },
        "memory_bytes": _memory_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def _memory_bytes() -> int | None:
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    return int(psutil.virtual_memory().total)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
