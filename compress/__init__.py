"""aigc-compress: make small generative and perception models smaller and faster, with evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aigc_compress.models.training.coach import TaskCoach

    from .api import export, prune
    from .artifact import Artifact
    from .bench_result import BenchOptions
    from .benching import bench_models
    from .budget import Budget
    from .choosing import compress
    from .errors import AigcCompressError
    from .loading import load_artifact
    from .packing import pack
    from .passes import PruneConfig
    from .quantizing import QuantizeOptions, quantize
    from .recipe import Recipe, load_recipe
    from .running import RunOptions, run
    from .workload import FeedOptions

__version__ = "0.1.0"

_HOMES = {
    "AigcCompressError": "errors",
    "Artifact": "artifact",
    "BenchOptions": "bench_result",
    "Budget": "budget",
    "FeedOptions": "workload",
    "PruneConfig": "passes",
    "QuantizeOptions": "quantizing",
    "Recipe": "recipe",
    "RunOptions": "running",
    "TaskCoach": "models.training.coach",
    "bench_models": "benching",
    "compress": "choosing",
    "export": "api",
    "load_artifact": "loading",
    "load_recipe": "recipe",
    "pack": "packing",
    "prune": "api",
    "quantize": "quantizing",
    "run": "running",
}
__all__ = [
    "AigcCompressError",
    "Artifact",
    "BenchOptions",
    "Budget",
    "FeedOptions",
    "PruneConfig",
    "QuantizeOptions",
    "Recipe",
    "RunOptions",
    "TaskCoach",
    "__version__",
    "bench_models",
    "compress",
    "export",
    "load_artifact",
    "load_recipe",
    "pack",
    "prune",
    "quantize",
    "run",
]


def __getattr__(name: str) -> Any:
    """Hand on the public names when they are asked for: importing the package costs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
