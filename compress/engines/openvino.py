"""Run ONNX graphs with OpenVINO on the CPU, for the latency of single calls or for throughput."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from aigc_compress.errors import NotOnThisMachineError, PassError, first_line
from aigc_compress.task import Feeds

from .base import Availability

if TYPE_CHECKING:
    from aigc_compress.artifact import Artifact

__all__ = ["OpenVinoEngine", "OpenVinoSession"]

INSTALL = "pip install 'aigc-compress[openvino]'"


@dataclass(frozen=True)
class OpenVinoEngine:
    """OpenVINO's CPU plugin.

    Attributes:
        name: what it is called.
        hint: LATENCY, one stream of all threads; or THROUGHPUT, as many streams as OpenVINO finds
            best for calls that come at once.
    """

    name: str = "openvino"
    hint: Literal["LATENCY", "THROUGHPUT"] = "LATENCY"
    stage: str = "onnx"
    is_on_gpu: bool = False
    int8_pass: str = "openvino"

    def availability(self) -> Availability:
        """Tell whether openvino is installed, without importing it."""
        if importlib.util.find_spec("openvino") is None:
            return Availability(False, "openvino is not installed", INSTALL)
        version = importlib.metadata.version("openvino")
        return Availability(True, f"openvino {version}, CPU, for {self.hint.lower()}")

    def load(self, artifact: Artifact, *, threads: int) -> OpenVinoSession:
        """Compile a graph; raises PassError where OpenVINO refuses it."""
        self._require()
        return OpenVinoSession(
            artifact.payload.SerializeToString(), threads=threads, hint=self.hint
        )

    def load_file(self, path: Path, *, threads: int) -> OpenVinoSession:
        """Compile a graph from its file; raises PassError where OpenVINO refuses it."""
        self._require()
        return OpenVinoSession(path, threads=threads, hint=self.hint)

    def _require(self) -> None:
        found = self.availability()
        if not found.is_available:
            raise NotOnThisMachineError(f"{found.detail}. To install: {found.install}")


class OpenVinoSession:
    """A compiled model with an inference request for each thread; feeds are not checked here."""

    def __init__(self, model: bytes | Path, *, threads: int, hint: str = "LATENCY") -> None:
        openvino = importlib.import_module("openvino")
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": hint,
            "INFERENCE_PRECISION_HINT": "f32",  # bf16 otherwise, where the processor has it
        }
        if hint == "LATENCY":
            settings["NUM_STREAMS"] = 1
        try:
            graph = core.read_model(model)
            # Compiled, an input or output may go by the name of what it was merged with too.
            inputs = [(each.get_any_name(), each.get_partial_shape()) for each in graph.inputs]
            names = [each.get_any_name() for each in graph.outputs]
            compiled = core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            raise PassError(f"OpenVINO does not load this graph: {_reason(error)}") from error
        self._compiled, self._own = compiled, threading.local()
        self._inputs, self._names = dict(inputs), names
        self._fitting: set[tuple[Any, ...]] = set()

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        shapes = tuple((name, value.shape) for name, value in feeds.items())
        if shapes not in self._fitting:
            self._require_fitting(feeds)
            self._fitting.add(shapes)
        request = self._request()
        try:
            request.infer(dict(feeds))
        except (RuntimeError, TypeError, ValueError) as error:
            raise PassError(f"OpenVINO does not run this graph: {_reason(error)}") from error
        # The request's own memory is written again by the next call, so it is copied.
        return {name: np.array(request.get_tensor(name).data) for name in self._names}

    def _require_fitting(self, feeds: Feeds) -> None:
        """Raise PassError for what OpenVINO takes without a word: missing feeds, wrong ranks."""
        openvino = importlib.import_module("openvino")
        fault = None
        if set(feeds) != set(self._inputs):
            fault = f"it reads {sorted(self._inputs)}, not {sorted(feeds)}"
        for name in set(feeds) & set(self._inputs):
            shape = feeds[name].shape
            if not self._inputs[name].compatible(openvino.PartialShape(list(shape))):
                fault = f"{name} is {self._inputs[name]}, not {list(shape)}"
        if fault:
            raise PassError(f"OpenVINO does not run this graph: {fault}")

    def _request(self) -> Any:
        """Return this thread's request: one that is at work takes no second call."""
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        return self._own.request


def _reason(error: Exception) -> str:
    """Return the last line of OpenVINO's message that is more than the place in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [
        line for line in lines if line and not line.startswith(("Exception from", "Check '"))
    ]
    return telling[-1] if telling else first_line(error)
