"""aigc-compress: make small generative and perception models smaller and faster, with evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import export
    from .artifact import Artifact
    from .bench_result import BenchOptions
    from .benching import bench_models
    from .budget import Budget
    from .errors import AigcCompressError
    from .loading import load_artifact
    from .quantizing import QuantizeOptions, quantize
    from .workload import FeedOptions

__version__ = "0.1.0"

_HOMES = {
    "AigcCompressError": "errors",
    "Artifact": "artifact",
    "BenchOptions": "bench_result",
    "Budget": "budget",
    "FeedOptions": "workload",
    "QuantizeOptions": "quantizing",
    "bench_models": "benching",
    "export": "api",
    "load_artifact": "loading",
    "quantize": "quantizing",
}
__all__ = [
    "AigcCompressError",
    "Artifact",
    "BenchOptions",
    "Budget",
    "FeedOptions",
    "QuantizeOptions",
    "__version__",
    "bench_models",
    "export",
    "load_artifact",
    "quantize",
]


def __getattr__(name: str) -> Any:
    """Hand on the public names when they are asked for: importing the package costs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
