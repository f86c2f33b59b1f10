"""INT8 as engines with a compiler of their own want it: Q/DQ before layers with weights alone.

Nothing is rounded behind a layer, so that the compiler joins it with the activation function that
follows; ONNX Runtime, whose integer operators stand one by one, wants borders around every node
instead (see `quantize`). Biases stay float. A residual sum takes the branch that is quantized
anyhow from its integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from onnx import ModelProto, NodeProto

from aigc_compress.errors import PassError

from .base import Context
from .graphs import known_shapes, sorted_nodes
from .operators import with_node_names
from .quantize.config import RangeMethod
from .quantize.pairs import narrow_pairs, pair_scales
from .quantize.tools import first_that_works, with_own_constants
from .ranges import Observed, Range, calibrate, choose_ranges, to_tensors_data

__all__ = ["Borders", "layer_names", "with_borders"]


@dataclass(frozen=True)
class Borders:
    """What is quantized, and how; weights are symmetric int8, one scale per output channel.

    Attributes:
        layers: operators whose inputs are quantized.
        symmetric: whether activations are int8 around zero, instead of uint8 with a zero point.
        minds_pairs: whether weights are so small that no two products leave int16 (`pairs`).
        ranges: where the range of an activation ends.
        keep_float: names of nodes that stay float.
    """

    layers: tuple[str, ...]
    symmetric: bool
    minds_pairs: bool = False
    ranges: RangeMethod = "minmax"
    keep_float: tuple[str, ...] = ()


def layer_names(model: ModelProto, layers: Sequence[str]) -> list[str]:
    """Return the nodes of these operators by name."""
    return [node.name for node in with_node_names(model).graph.node if node.op_type in layers]


def with_borders(model: ModelProto, borders: Borders, context: Context) -> ModelProto:
    """Return the graph with Q/DQ before its layers; raises PassError where there is none."""
    model = with_node_names(model)
    layers = [node for node in model.graph.node if node.op_type in borders.layers]
    chosen = [node for node in layers if node.name not in borders.keep_float]
    if not chosen:
        kept = " that does not stay float" if layers else ""
        raise PassError(f"Nothing to quantize: the graph has no {', '.join(borders.layers)}{kept}.")
    observed = _observed(model, layers, context)
    endless = {name for name, each in observed.items() if each.not_finite}
    region = [node.name for node in chosen if endless.isdisjoint(node.input)]
    if not region:
        raise PassError("Nothing to quantize: what the layers read held infinities or NaN.")
    read = {name for node in chosen for name in node.input[:2]}
    bounded = {name: observed[name] for name in observed if name in read - endless}
    ranges = choose_ranges(bounded, bits=8, symmetric=borders.symmetric, method=borders.ranges)
    quantized, _, _ = first_that_works(
        lambda graph: _written(graph, borders, ranges, region),
        with_own_constants(model, {*region}),
        [{}],
    )
    _restore_beta(quantized, model)
    if borders.minds_pairs:
        narrow_pairs(quantized)
    return sorted_nodes(_with_fused_sums(quantized, borders.layers))


def _observed(
    model: ModelProto, layers: Sequence[NodeProto], context: Context
) -> Mapping[str, Observed]:
    """Return what the layers read during calibration; graphs of one run share it."""
    if not context.calibration:
        raise PassError("8 bits need calibration feeds, and there are none.")
    stored = {each.name for each in model.graph.initializer}
    read = {name: None for node in layers for name in node.input[:2] if name not in stored}
    key = f"read by layers in {hashlib.sha256(model.SerializeToString()).hexdigest()}"
    if key not in context.kept:
        context.kept[key] = calibrate(
            model, context.calibration, tensors=[*read], on_step=context.on_step
        )
    return cast(Mapping[str, Observed], context.kept[key])


def _written(
    model: ModelProto, borders: Borders, ranges: Mapping[str, Range], region: list[str]
) -> ModelProto:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = ModelProto()
    copy.CopyFrom(model)
    overrides = pair_scales(model, region) if borders.minds_pairs else {}
    overrides |= {  # one scale where channels lie in groups
        node.input[1]: [{"quant_type": QuantType.QInt8}]
        for node in model.graph.node
        if node.op_type == "ConvTranspose" and _groups(node) > 1
    }
    quantizer = QDQQuantizer(
        copy,
        True,
        False,
        QuantType.QInt8,
        QuantType.QInt8 if borders.symmetric else QuantType.QUInt8,
        to_tensors_data(ranges),
        region,
        [],
        list(borders.layers),
        {
            "ActivationSymmetric": borders.symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "QDQDisableWeightAdjustForInt32Bias": True,  # biases stay float
            "OpTypesToExcludeOutputQuantization": list(borders.layers),
            "TensorQuantOverrides": overrides,
        },
    )
    quantizer.quantize_model()
    quantized: ModelProto = quantizer.model.model
    return quantized


def _restore_beta(quantized: ModelProto, before: ModelProto) -> None:
    """Give Gemms back how they scale their bias, which the tool takes into integers alone."""
    betas = {
        node.name: each
        for node in before.graph.node
        for each in node.attribute
        if node.op_type == "Gemm" and each.name == "beta"
    }
    for node in quantized.graph.node:
        for each in node.attribute if node.name in betas else ():
            if each.name == "beta":
                each.CopyFrom(betas[node.name])


def _groups(node: Any) -> int:
    return next((each.i for each in node.attribute if each.name == "group"), 1)


def _with_fused_sums(model: ModelProto, layers: Sequence[str]) -> ModelProto:
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
        of_layers = [name in makers and makers[name].op_type in layers for name in node.input]
        for index, name in enumerate(node.input):
            others = [each for place, each in enumerate(node.input) if place != index]
            is_alike = shapes.get(name) == shapes.get(others[0])
            if of_layers == [index != 0, index != 1] and name in dequantized and is_alike:
                node.input[index] = dequantized[name]
    return model
