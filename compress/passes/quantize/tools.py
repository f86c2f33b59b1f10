"""Calls of ONNX Runtime's quantization tools, which fail in ways of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from aigc_compress.errors import PassError, first_line
from aigc_compress.passes.base import quiet_library

__all__ = ["first_that_works", "sorted_nodes", "through_file"]


def first_that_works(
    quantize: Callable[..., ModelProto], model: ModelProto, attempts: Sequence[Mapping[str, Any]]
) -> tuple[ModelProto, Mapping[str, Any], list[str]]:
    """Return the first result, the options that gave it, and what went wrong before.

    Raises:
        PassError: no attempt worked; it tells why the first one did not.
    """
    given_up: list[str] = []
    for options in attempts:
        try:
            with quiet_library():
                return sorted_nodes(quantize(model, **options)), options, given_up
        except Exception as error:  # the tools raise whatever their helpers do
            told = first_line(error) or type(error).__name__
            given_up.append(f"ONNX Runtime's quantization tool failed: {told}")
    raise PassError(given_up[0])


def through_file(quantize: Callable[..., object], model: ModelProto, **options: Any) -> ModelProto:
    """Run a tool that works from file to file."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize(str(source), str(target), **options)
        return onnx.load(target)


def sorted_nodes(model: ModelProto) -> ModelProto:
    """Sort the nodes as ONNX demands: the tool appends new ones, after an If that reads them."""
    import onnx_ir as ir

    graph = ir.from_proto(model)
    graph.graph.sort()
    return ir.to_proto(graph)
