"""INT8 for ONNX graphs: static Q/DQ where ranges are calibrated, dynamic for LSTM and MatMul.

This is the first version: one scheme per graph, chosen by operator and instruction set. What has
no integer kernel in ONNX Runtime keeps float arithmetic, ConvTranspose with weights stored as INT8.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader
from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step
from aigc_compress.errors import PassError
from aigc_compress.task import Feeds

from .base import Context, quiet_library
from .operators import (
    BORDERS,
    RECURRENT,
    STORED_SUFFIX,
    all_nodes,
    is_integer,
    operators_at_run_time,
    with_node_names,
)

__all__ = ["Mode", "QuantizeConfig", "QuantizePass"]

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
        before = Counter(node.op_type for node in all_nodes(model.graph))
        _refuse_quantized(before)
        scheme: dict[str, Any] = {}
        for part in _plan(model, before, config.mode):
            model, told = part(model, config, context)
            scheme.update(told)
        operators = operators_at_run_time(model, artifact.payload)
        if not operators["int8"] and not operators["weights_only"]:
            failures = [f for part in scheme.values() for f in part.get("given_up", ())]
            why = f" On the way: {'; '.join(failures)}" if failures else ""
            raise PassError(
                f"Nothing was quantized: the graph holds {dict(before.most_common(8))}, and mode"
                f" {config.mode!r} covers none of it that has constant weights.{why}"
            )
        numbers = {"scheme": scheme, "operators": operators}
        step = Step(self.name, config.model_dump(), context.seed, numbers)
        return artifact.then(model, step, stage="onnx")


def _refuse_quantized(before: Counter[str]) -> None:
    found = sorted(op for op in before if is_integer(op) or op in BORDERS)
    if found:
        raise PassError(
            f"The graph is quantized already: it holds {', '.join(found)}."
            " Quantize the floating-point model that it was made from."
        )


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
    if before["ConvTranspose"] and mode != "dynamic":
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
    named = with_node_names(model)
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
    """Store ConvTranspose's weights as INT8; ONNX Runtime makes floats of them when it loads."""
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    weights = {each.name: each for each in graph.initializer if _is_storable(each)}
    nodes, replaced = [], set()
    for node in graph.node:
        if node.op_type == "ConvTranspose" and node.input[1] in weights:
            replaced.add(node.input[1])
            nodes += _store_as_int8(graph, node, weights[node.input[1]])
        nodes.append(node)
    if not replaced:
        return model, {}
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph, replaced)
    told = {"operators": ["ConvTranspose"], "weights": "int8, symmetric, per output channel"}
    return quantized, {"weights_only": told | {"converted": len(replaced)}}


def _is_storable(weight: Any) -> bool:
    is_float = weight.data_type == onnx.TensorProto.FLOAT
    return is_float and int(np.prod(weight.dims)) >= SMALLEST_WEIGHT


def _drop_unused(graph: Any, names: set[str]) -> None:
    """Drop those of the named initializers that nothing reads any more, here or further inside."""
    used = {name for node in all_nodes(graph) for name in node.input}
    unused = names - used - {each.name for each in graph.output}
    for field in (graph.initializer, graph.input):  # before IR 4 a weight was an input too
        kept = [each for each in field if each.name not in unused]
        del field[:]
        field.extend(kept)


def _store_as_int8(graph: Any, node: Any, weight: Any) -> list[Any]:
    """Add the INT8 copy of a weight and return the nodes that make floats of it; axis 1 is output.

    Cast and Mul, not DequantizeLinear: ONNX Runtime 1.32 folds the former when it loads the graph,
    but keeps the latter and runs it at every call (0.4 of 1.6 ms in the reference GAN).
    """
    values = numpy_helper.to_array(weight).astype(np.float32)
    per_axis = np.abs(values).max(axis=(0, *range(2, values.ndim)), keepdims=True)
    scale = np.maximum(per_axis / 127, np.finfo(np.float32).tiny).astype(np.float32)
    integers = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    stem = f"{weight.name}_{node.output[0]}"
    for name, array in ((f"{stem}_int8", integers), (f"{stem}_scale", scale)):
        graph.initializer.append(numpy_helper.from_array(array, name))
    node.input[1] = f"{stem}{STORED_SUFFIX}"
    to_float = onnx.TensorProto.FLOAT
    cast = helper.make_node(
        "Cast", [f"{stem}_int8"], [f"{stem}_cast"], to=to_float, name=f"{stem}_cast"
    )
    scaled = [f"{stem}_cast", f"{stem}_scale"]
    return [cast, helper.make_node("Mul", scaled, [node.input[1]], name=f"{stem}_mul")]


def _weights_told(config: QuantizeConfig, *, per_channel: bool) -> str:
    bits = "7 of 8 bits" if config.reduce_range else "8 bits"
    return f"int8, symmetric, per {'channel' if per_channel else 'tensor'}, {bits}"


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hand calibration feeds to ONNX Runtime's tools one by one, and tell how far they are."""

    def __init__(self, feeds: tuple[Feeds, ...], on_step: Callable[[int, int], None]) -> None:
        self._feeds = feeds
        self._next = 0
        self._on_step = on_step

    def get_next(self) -> Any:
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
    with tempfile.TemporaryDirectory() as folder, quiet_library():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        try:
            quantize(str(source), str(target), **options)
        except Exception as error:  # the tool raises whatever its helpers do
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise PassError(f"ONNX Runtime's quantization tool failed: {first}") from error
        return _sorted(onnx.load(target))


def _sorted(model: ModelProto) -> ModelProto:
    """Sort the nodes as ONNX demands: the tool appends new ones, after an If that reads them."""
    import onnx_ir as ir

    graph = ir.from_proto(model)
    graph.graph.sort()
    return ir.to_proto(graph)
