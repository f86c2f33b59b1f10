"""Run ONNX graphs with ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aigc_compress.artifact import Artifact
from aigc_compress.errors import PassError, first_line
from aigc_compress.task import Feeds

from .base import Availability

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["OrtEngine", "OrtSession", "optimize_offline", "optimized"]


class OrtSession:
    """A session of ONNX Runtime on a graph or a file; feeds are not checked here.

    Without `blocks_layouts` channels stay where they are: slower, and sure for float16.
    """

    def __init__(
        self, model: Artifact | Path, *, threads: int, blocks_layouts: bool = True
    ) -> None:
        source = str(model) if isinstance(model, Path) else model.payload.SerializeToString()
        options = session_options(threads)
        if not blocks_layouts:
            level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.graph_optimization_level = level
        self._session = create_session(source, options)
        self._names = [each.name for each in self._session.get_outputs()]

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        try:
            values = self._session.run(self._names, feeds)
        except Exception as error:
            raise _translated(error, "run") from error
        return {name: np.asarray(v) for name, v in zip(self._names, values, strict=True)}


class OrtEngine:
    """ONNX Runtime's CPU provider."""

    name = "ort"
    stage = "onnx"

    def availability(self) -> Availability:
        """Tell the version: ONNX Runtime is a part of the base install."""
        return Availability(True, f"onnxruntime {onnxruntime.__version__}, CPU")

    def load(self, artifact: Artifact, *, threads: int) -> OrtSession:
        """Load a graph; raises PassError where ONNX Runtime refuses it."""
        return OrtSession(artifact, threads=threads)

    def load_file(self, path: Path, *, threads: int) -> OrtSession:
        """Load a graph from its file; raises PassError where ONNX Runtime refuses it."""
        return OrtSession(path, threads=threads)


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
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _translated(error, "load") from error


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
