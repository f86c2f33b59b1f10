"""Load an ONNX model and call it like a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aigc_compress.errors import FeedError, InputFileError
from aigc_compress.packed import decoded, is_packed, unpacked

__all__ = ["Model", "load_graph", "load_model"]


class Model:
    """A loaded model; it may be called from several threads at once.

    Attributes:
        inputs: input names in order.
        outputs: output names in order.
        metadata: the file's own metadata, how it was made included.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.inputs = tuple(each.name for each in session.get_inputs())
        self.outputs = tuple(each.name for each in session.get_outputs())
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)

    def __call__(self, *arrays: NDArray[Any], **named: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run once: arrays in the order of `inputs`, or by name; returns the outputs by name.

        Raises:
            FeedError: an input is missing, unknown, or of another dtype or shape.
        """
        feeds = {**dict(zip(self.inputs, arrays, strict=False)), **named}
        if len(arrays) > len(self.inputs) or set(feeds) != set(self.inputs):
            raise FeedError(f"The inputs are {', '.join(self.inputs)}; given: {', '.join(feeds)}.")
        try:
            values = self._session.run(None, {k: np.asarray(v) for k, v in feeds.items()})
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise FeedError(f"The model does not run on this input: {error}") from error
        return {name: np.asarray(v) for name, v in zip(self.outputs, values, strict=True)}


def load_model(path: Path, *, threads: int = 1) -> Model:
    """Load an `.onnx` file, or a packed `.onnx.xz`, on the CPU.

    Args:
        path: the file.
        threads: intra-op threads.

    Raises:
        InputFileError: the file is missing or damaged, or ONNX Runtime does not load it.
    """
    if not path.is_file():
        raise InputFileError(f"There is no file {path}.")
    graph = unpacked(path) if is_packed(path) else str(path)
    return Model(_session(graph, str(path), threads))


def load_graph(content: bytes, name: str, *, threads: int = 1) -> Model:
    """Load a model from the bytes of such a file; its name tells which kind it is.

    Raises:
        InputFileError: it is damaged, or ONNX Runtime does not load it.
    """
    graph = decoded(content, name) if is_packed(name) else content
    return Model(_session(graph, name, threads))


def _session(graph: str | bytes, name: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False  # it keeps what overlapping calls once took; as fast
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise InputFileError(f"{name} does not load: {error}") from error
