"""INT8 for ONNX graphs: static Q/DQ where ranges are calibrated, dynamic for LSTM and MatMul.

This is the first version: one scheme per graph, chosen by operator and instruction set. What has
no integer kernel in ONNX Runtime keeps float arithmetic, ConvTranspose with weights stored as INT8.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper
from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step
from aigc_compress.engines.ort import optimized
from aigc_compress.errors import PassError
from aigc_compress.task import Feeds

from .base import Context

__all__ = ["Mode", "QuantizeConfig", "QuantizePass", "operators_at_run_time"]

Mode = Literal["auto", "static", "dynamic"]

STATIC_ANCHORS = ("Conv", "Gemm", "MatMul")
# Operators that ONNX Runtime 1.32 runs on integers, or that hand integers through.
STATIC_FOLLOWERS = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "GlobalAveragePool",
    "LeakyRelu",
    "MaxPool",
    "Relu",
    "Reshape",
    "Resize",
    "Transpose",
)
RECURRENT = ("LSTM", "GRU", "RNN")
WHY_FLOAT: Mapping[str, str] = {
    "Conv": "not quantized: weights are no constant, or the mode is dynamic",
    "ConvTranspose": "ONNX Runtime has no integer kernel; weights are stored as INT8",
    "GRU": "ONNX Runtime's tools have no integer GRU",
    "Gemm": "weights are no constant, or ONNX Runtime found no integer form",
    "LSTM": "weights are no constant, or the mode is static",
    "MatMul": "both sides are activations, or ONNX Runtime found no integer form",
    "RNN": "ONNX Runtime has no integer RNN",
}
ALIASES = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul"}
SMALLEST_WEIGHT = 1024
# Per channel, and options for ONNX Runtime's static tool, tried in this order. Its adjustment of
# weight scales to int32 biases fails on some per-channel Gemms (1.32: "truth value of an array").
STATIC_ATTEMPTS: tuple[tuple[bool, Mapping[str, Any]], ...] = (
    (True, {}),
    (True, {"QDQDisableWeightAdjustForInt32Bias": True}),
    (False, {}),
)


class QuantizeConfig(BaseModel):
    """Settings of the quantization."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = Field(
        default="auto", description="auto: static for Conv and Gemm, dynamic for LSTM"
    )
    per_channel: bool = Field(default=True, description="one scale per output channel of a weight")
    reduce_range: bool = Field(
        default=False,
        description="7-bit weights: u8 x s8 sums saturate in int16 on x86 without VNNI",
    )


class QuantizePass:
    """Quantize with ONNX Runtime's own tools, then look at what really runs on integers."""

    name = "quantize"
    config = QuantizeConfig

    def run(self, artifact: Artifact, config: QuantizeConfig, context: Context) -> Artifact:
        """Return the INT8 graph; `numbers` tell the scheme and what became of every operator.

        Raises:
            PassError: nothing in the graph could be quantized, or the result does not load.
        """
        model: ModelProto = artifact.payload
        before = Counter(node.op_type for node in _all_nodes(model.graph))
        scheme: dict[str, Any] = {}
        for part in _plan(model, before, config.mode):
            model, told = part(model, config, context)
            scheme.update(told)
        operators = operators_at_run_time(model)
        if not operators["int8"] and "weights_only" not in scheme:
            failures = [f for part in scheme.values() for f in part.get("given_up", ())]
            why = f" On the way: {'; '.join(failures)}" if failures else ""
            raise PassError(
                f"Nothing was quantized: the graph holds {dict(before.most_common(8))}, and mode"
                f" {config.mode!r} covers none of it that has constant weights.{why}"
            )
        numbers = {"scheme": scheme, "operators": operators}
        step = Step(self.name, config.model_dump(), context.seed, numbers)
        return artifact.then(model, step, stage="onnx")


Part = Callable[[ModelProto, QuantizeConfig, Context], "tuple[ModelProto, dict[str, Any]]"]


def _plan(model: ModelProto, before: Counter[str], mode: Mode) -> list[Part]:
    """Return the parts of the work that this graph and mode ask for.

    The static tool sees the main graph alone, the dynamic one the graphs inside If and Loop too.
    """
    parts: list[Part] = []
    is_recurrent = any(before[op] for op in RECURRENT)
    has_anchor = any(node.op_type in ("Conv", "Gemm") for node in model.graph.node)
    if mode == "static" or (mode == "auto" and has_anchor):
        parts.append(_static)
    if mode == "dynamic" or (mode == "auto" and (is_recurrent or not parts)):
        parts.append(_dynamic)
    if before["ConvTranspose"]:
        parts.append(_weights_only)
    return parts


def _static(
    model: ModelProto, config: QuantizeConfig, context: Context
) -> tuple[ModelProto, dict[str, Any]]:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    if not context.calibration:
        raise PassError("Static quantization needs calibration feeds, and there are none.")
    present = {node.op_type for node in model.graph.node}
    anchors = [op for op in STATIC_ANCHORS if op in present]
    if not anchors:
        raise PassError(
            f"Static quantization covers {', '.join(STATIC_ANCHORS)}; the graph has none of them."
            " Try --mode dynamic."
        )
    named = _with_node_names(model)
    fixed = {
        "quant_format": QuantFormat.QDQ,
        "op_types_to_quantize": [*anchors, *STATIC_FOLLOWERS],
        "nodes_to_quantize": _integer_region(named),
        "reduce_range": config.reduce_range,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
    }
    attempts = [
        {**fixed, "per_channel": config.per_channel and per_channel, "extra_options": dict(extra)}
        for per_channel, extra in STATIC_ATTEMPTS
    ]
    quantized, used, given_up = _first_that_works(
        lambda source, target, **options: quantize_static(
            source, target, _Reader(context.calibration, context.on_step), **options
        ),
        named,
        attempts,
    )
    told = {
        "activations": "uint8, asymmetric, per tensor, min-max",
        "weights": _weights_told(config, per_channel=used["per_channel"]),
        "operators": anchors,
        "calibration_sets": len(context.calibration),
        "given_up": given_up,
    }
    return quantized, {"static": told}


def _with_node_names(model: ModelProto) -> ModelProto:
    """Return a copy in which every node has a name of its own, as the tool needs to select."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    taken = Counter(node.name for node in named.graph.node)
    for index, node in enumerate(named.graph.node):
        if not node.name or taken[node.name] > 1:
            node.name = f"{node.op_type}_{index}"
    return named


def _integer_region(model: ModelProto) -> list[str]:
    """Return the names of anchors, and of followers fed by integers alone.

    A follower between float operators would only add quantize and dequantize steps.
    """
    constants = {each.name for each in model.graph.initializer}
    integers: set[str] = set()
    names = []
    for node in model.graph.node:  # topologically sorted, as ONNX demands
        activations = [name for name in node.input if name and name not in constants]
        follows = bool(activations) and integers.issuperset(activations)
        if node.op_type in STATIC_ANCHORS or (node.op_type in STATIC_FOLLOWERS and follows):
            names.append(node.name)
            integers.update(node.output)
    return names


def _dynamic(
    model: ModelProto, config: QuantizeConfig, _context: Context
) -> tuple[ModelProto, dict[str, Any]]:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    fixed = {
        "op_types_to_quantize": ["LSTM", "MatMul"],
        "per_channel": config.per_channel,
        "reduce_range": config.reduce_range,
        "weight_type": QuantType.QInt8,
    }
    # The tool fails on an LSTM inside an If whose weights are computed there.
    attempts = [{**fixed, "extra_options": {"EnableSubgraph": inside}} for inside in (True, False)]
    quantized, _, given_up = _first_that_works(quantize_dynamic, model, attempts)
    told = {
        "activations": "uint8, ranges measured at run time",
        "weights": _weights_told(config, per_channel=config.per_channel),
        "given_up": given_up,
    }
    return quantized, {"dynamic": told}


def _weights_only(
    model: ModelProto, _config: QuantizeConfig, _context: Context
) -> tuple[ModelProto, dict[str, Any]]:
    """Store ConvTranspose's weights as INT8 behind DequantizeLinear; they are folded at load."""
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    weights = {each.name: each for each in graph.initializer}
    nodes = []
    for node in graph.node:
        is_target = node.op_type == "ConvTranspose" and node.input[1] in weights
        weight = weights.get(node.input[1]) if is_target else None
        if weight is not None and int(np.prod(weight.dims)) >= SMALLEST_WEIGHT:
            nodes.append(_store_as_int8(graph, node, weight))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    told = {"operators": ["ConvTranspose"], "weights": "int8, symmetric, per output channel"}
    return quantized, {"weights_only": told}


def _store_as_int8(graph: Any, node: Any, weight: Any) -> Any:
    """Add the INT8 copy of a weight and return the node that dequantizes it; axis 1 is output."""
    values = numpy_helper.to_array(weight).astype(np.float32)
    per_axis = np.abs(values).max(axis=(0, *range(2, values.ndim)))
    scale = np.maximum(per_axis / 127, np.finfo(np.float32).tiny).astype(np.float32)
    shaped = scale.reshape(1, -1, *[1] * (values.ndim - 2))
    integers = np.clip(np.rint(values / shaped), -127, 127).astype(np.int8)
    stem = f"{weight.name}_{node.output[0]}"
    names = [f"{stem}_int8", f"{stem}_scale", f"{stem}_zero"]
    for name, array in zip(names, (integers, scale, np.zeros_like(scale, np.int8)), strict=True):
        graph.initializer.append(numpy_helper.from_array(array, name))
    node.input[1] = f"{stem}_float"
    return helper.make_node("DequantizeLinear", names, [node.input[1]], axis=1, name=f"{stem}_dq")


def _weights_told(config: QuantizeConfig, *, per_channel: bool) -> str:
    bits = "7 of 8 bits" if config.reduce_range else "8 bits"
    return f"int8, symmetric, per {'channel' if per_channel else 'tensor'}, {bits}"


def operators_at_run_time(model: ModelProto) -> dict[str, Any]:
    """Tell what ONNX Runtime runs on integers and what on floats, from its optimized graph.

    Returns:
        `int8` and `float`: number of operators by type; `overhead`: Quantize- and
        DequantizeLinear left between them; `reasons`: why a costly type stays float.
    """
    nodes: Counter[str] = Counter(
        ALIASES.get(str(n.op_type), str(n.op_type)) for n in _all_nodes(optimized(model).graph)
    )
    overhead = {op: nodes.pop(op) for op in sorted(nodes) if op.endswith("QuantizeLinear")}
    overhead |= {op: nodes.pop(op) for op in sorted(nodes) if op == "DequantizeLinear"}
    integer = {op: count for op, count in sorted(nodes.items()) if _is_integer(op)}
    floating = {op: count for op, count in sorted(nodes.items()) if op not in integer}
    reasons = {op: WHY_FLOAT[op] for op in floating if op in WHY_FLOAT}
    return {"int8": integer, "float": floating, "overhead": overhead, "reasons": reasons}


def _is_integer(op: str) -> bool:
    return op.startswith(("QLinear", "QGemm", "QAttention", "DynamicQuantize")) or "Integer" in op


def _all_nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph and of the graphs inside its If, Loop and Scan nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


class _Reader:
    """Hand calibration feeds to ONNX Runtime's tools one by one, and tell how far they are."""

    def __init__(self, feeds: tuple[Feeds, ...], on_step: Callable[[int, int], None]) -> None:
        self._feeds = feeds
        self._next = 0
        self._on_step = on_step

    def get_next(self) -> dict[str, Any] | None:
        if self._next == len(self._feeds):
            return None
        self._on_step(self._next + 1, len(self._feeds))
        self._next += 1
        return dict(self._feeds[self._next - 1])

    def __len__(self) -> int:
        return len(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._feeds = self._feeds[start_index:end_index]
        self._next = 0


def _first_that_works(
    quantize: Callable[..., object], model: ModelProto, attempts: Sequence[Mapping[str, Any]]
) -> tuple[ModelProto, Mapping[str, Any], list[str]]:
    """Return the first result, the options that gave it, and what went wrong before."""
    given_up: list[str] = []
    for options in attempts:
        try:
            return _through_file(quantize, model, **options), options, given_up
        except PassError as error:
            given_up.append(str(error))
    raise PassError(given_up[0])


def _through_file(quantize: Callable[..., object], model: ModelProto, **options: Any) -> ModelProto:
    """Run a tool that works from file to file; its chatter is silenced, its failure named."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        try:
            quantize(str(source), str(target), **options)
        except Exception as error:  # the tool raises whatever its helpers do
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise PassError(f"ONNX Runtime's quantization tool failed: {first}") from error
        return onnx.load(target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
