"""Calls of ONNX Runtime's quantization tools, which fail in ways of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto

from aigc_compress.errors import PassError, first_line
from aigc_compress.passes.base import quiet_library
from aigc_compress.passes.graphs import sorted_nodes

__all__ = ["first_that_works", "through_file", "with_own_constants"]


LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BIAS = 2  # its place among the inputs


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


def with_own_constants(model: ModelProto, region: Collection[str]) -> ModelProto:
    """Return a copy where no layers share a constant that the static tool would spoil.

    It rounds the weights of a layer that stays float where an integer one reads them too, and it
    names copies of a shared `bias` `bias0`, `bias1` and so on, where the graph may have such a
    tensor already (ONNX Runtime 1.32).

    Args:
        model: every node of its main graph has a name.
        region: names of the nodes that become integer.
    """
    own = ModelProto()
    own.CopyFrom(model)
    stored = {each.name: each for each in model.graph.initializer}
    taken = {*stored, *(name for node in model.graph.node for name in node.output)}
    rounded = {name for node in model.graph.node if node.name in region for name in node.input}
    biases: set[str] = set()
    for node in own.graph.node:
        if node.op_type not in LAYERS:
            continue
        for place, name in enumerate(node.input):
            is_spoilt = node.name not in region and name in rounded
            is_shared = place == BIAS and name in biases
            if name in stored and (is_spoilt or is_shared):
                node.input[place] = _copied(own, stored[name], f"{name}_of_{node.name}", taken)
        biases.update(node.input[BIAS:])
    return own


def _copied(model: ModelProto, constant: TensorProto, name: str, taken: set[str]) -> str:
    """Add a copy of a constant under a name like this one, and return the name."""
    while name in taken:
        name += "_"
    taken.add(name)
    added = model.graph.initializer.add()
    added.CopyFrom(constant)
    added.name = name
    return name
