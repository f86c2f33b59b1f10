"""The `tensorrt` pass: a graph that TensorRT builds, in float32, float16, or with int8 layers.

Engines are strongly typed: a precision is what the graph says. int8 is written as symmetric
QuantizeLinear and DequantizeLinear before layers with weights, and not behind them, so that
activation functions fuse; biases stay float. A residual sum takes the branch that is quantized
anyhow from its integers, so that it fuses with the layer that makes the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

from onnx import ModelProto, NodeProto
from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError

from ..base import Context, quiet_library
from ..graphs import known_shapes, sorted_nodes
from ..operators import count_operators, with_node_names
from ..quantize.config import RangeMethod
from ..ranges import Observed, Range, calibrate, choose_ranges, to_tensors_data
from .linter import lint

__all__ = ["Precision", "TensorRtConfig", "TensorRtPass", "layer_names"]

Precision = Literal["fp32", "fp16", "int8"]
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class TensorRtConfig(BaseModel):
    """Settings of a graph for TensorRT."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision = Field(default="fp32", description="what the layers compute in")
    ranges: RangeMethod = Field(
        default="minmax", description="where the range of an activation ends, for int8"
    )
    keep_float: tuple[str, ...] = Field(
        default=(), description="names of nodes that stay float32, as `fold` names them"
    )


class TensorRtPass:
    """Make a graph that TensorRT takes; the step's numbers tell what computes in what.

    `sqnr_db` compares with the graph before, both in ONNX Runtime on the CPU, on the check feeds.
    """

    name = "tensorrt"
    config = TensorRtConfig

    def run(self, artifact: Artifact, config: TensorRtConfig, context: Context) -> Artifact:
        """Return the graph.

        Raises:
            PassError: TensorRT would refuse the graph, or nothing in it has an int8 form.
        """
        model: ModelProto = artifact.payload
        if config.precision == "fp16":
            model = sorted_nodes(_halved(with_node_names(model), config))
        elif config.precision == "int8":
            model = sorted_nodes(_quantized(with_node_names(model), config, context))
        refused = lint(model)
        if refused:
            told = "; ".join(f"{each.node} ({each.op}): {each.reason}" for each in refused[:3])
            more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
            raise PassError(f"TensorRT would refuse this graph: {told}{more}.")
        numbers = {
            "operators": count_operators(model),
            "sqnr_db": _sqnr_db(artifact, model, context),
        }
        step = Step(self.name, config.model_dump(mode="json"), context.seed, numbers)
        return artifact.then(model, step, stage="onnx")


def _halved(model: ModelProto, config: TensorRtConfig) -> ModelProto:
    """Return the graph in float16; its inputs and outputs stay as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = ModelProto()
    copy.CopyFrom(model)
    with quiet_library():
        halved: ModelProto = convert_float_to_float16(
            copy,
            keep_io_types=True,
            op_block_list=[],  # what ONNX Runtime lacks in float16, TensorRT has
            node_block_list=list(config.keep_float),
        )
    return halved


def _quantized(model: ModelProto, config: TensorRtConfig, context: Context) -> ModelProto:
    layers = [node for node in model.graph.node if node.op_type in LAYERS]
    chosen = [node for node in layers if node.name not in config.keep_float]
    if not chosen:
        kept = " that does not stay float" if layers else ""
        raise PassError(f"Nothing to quantize: the graph has no {', '.join(LAYERS)}{kept}.")
    observed = _observed(model, layers, context)
    endless = {name for name, each in observed.items() if each.not_finite}
    region = [node.name for node in chosen if endless.isdisjoint(node.input)]
    read = {name for node in chosen for name in node.input[:2]}
    bounded = {name: observed[name] for name in observed if name in read - endless}
    ranges = choose_ranges(bounded, bits=8, symmetric=True, method=config.ranges)
    return _fused_sums(_with_borders(model, ranges, region))


def layer_names(model: ModelProto) -> list[str]:
    """Return the layers with weights, which have an INT8 form, by the names of their nodes."""
    return [node.name for node in with_node_names(model).graph.node if node.op_type in LAYERS]


def _observed(
    model: ModelProto, layers: Sequence[NodeProto], context: Context
) -> Mapping[str, Observed]:
    """Return what the layers read during calibration; graphs of one run share it."""
    if not context.calibration:
        raise PassError("int8 needs calibration feeds, and there are none.")
    stored = {each.name for each in model.graph.initializer}
    read = {name: None for node in layers for name in node.input[:2] if name not in stored}
    key = f"read by layers in {hashlib.sha256(model.SerializeToString()).hexdigest()}"
    if key not in context.kept:
        context.kept[key] = calibrate(
            model, context.calibration, tensors=[*read], on_step=context.on_step
        )
    return cast(Mapping[str, Observed], context.kept[key])


def _with_borders(model: ModelProto, ranges: Mapping[str, Range], region: list[str]) -> ModelProto:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = ModelProto()
    copy.CopyFrom(model)
    grouped = {
        node.input[1]: [{"quant_type": QuantType.QInt8}]
        for node in model.graph.node
        if node.op_type == "ConvTranspose" and _groups(node) > 1
    }
    quantizer = QDQQuantizer(
        copy,
        True,
        False,
        QuantType.QInt8,
        QuantType.QInt8,
        to_tensors_data(ranges),
        region,
        [],
        list(LAYERS),
        {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(LAYERS),
            "TensorQuantOverrides": grouped,  # one scale where channels lie in groups
        },
    )
    quantizer.quantize_model()
    quantized: ModelProto = quantizer.model.model
    return quantized


def _groups(node: Any) -> int:
    return next((each.i for each in node.attribute if each.name == "group"), 1)


def _fused_sums(model: ModelProto) -> ModelProto:
    """Let a sum of a layer and a tensor that is quantized anyhow read that tensor's integers."""
    makers = {name: node for node in model.graph.node for name in node.output}
    dequantized = {
        makers[node.input[0]].input[0]: node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in makers
    }
    shapes = known_shapes(model)
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        of_layers = [name in makers and makers[name].op_type in LAYERS for name in node.input]
        for index, name in enumerate(node.input):
            others = [each for place, each in enumerate(node.input) if place != index]
            is_alike = shapes.get(name) == shapes.get(others[0])
            if of_layers == [index != 0, index != 1] and name in dequantized and is_alike:
                node.input[index] = dequantized[name]
    return model


def _sqnr_db(before: Artifact, model: ModelProto, context: Context) -> float:
    sessions = [OrtSession(each, threads=1) for each in (before, replace(before, payload=model))]
    outputs = [[session.run(feeds) for feeds in context.check_feeds] for session in sessions]
    return lowest_agreement_db(*outputs)
