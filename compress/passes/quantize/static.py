"""Static INT8: QuantizeLinear and DequantizeLinear around what has an integer kernel.

Ranges are read from calibration feeds by `ranges`; ONNX Runtime's own tool puts the nodes in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any, cast

from onnx import ModelProto, NodeProto

from aigc_compress.errors import PassError
from aigc_compress.passes.base import Context
from aigc_compress.passes.operators import all_nodes, with_node_names
from aigc_compress.passes.ranges import Range, calibrate, choose_ranges, to_tensors_data

from .config import QuantizeConfig
from .dynamic import weights_told
from .pairs import narrow_pairs, pair_scales
from .repairs import repair_floats, repair_integers, without_effect
from .shield import shield_floats
from .tools import first_that_works, with_own_constants

__all__ = ["ANCHORS", "FOLLOWERS", "integer_region", "interpolates", "quantize_static"]

ANCHORS = ("Conv", "Gemm", "MatMul")
# Operators that ONNX Runtime 1.32 runs on integers, or that hand integers through.
FOLLOWERS = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "DepthToSpace",
    "Flatten",
    "Gather",
    "GlobalAveragePool",
    "LeakyRelu",
    "MaxPool",
    "Mul",
    "Relu",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
# Per channel, and options for ONNX Runtime's static tool, tried in this order. Its adjustment of
# weight scales to int32 biases fails on some per-channel Gemms (1.32: "truth value of an array").
ATTEMPTS: tuple[tuple[bool, Mapping[str, Any]], ...] = (
    (True, {}),
    (True, {"QDQDisableWeightAdjustForInt32Bias": True}),
    (False, {}),
)


def quantize_static(
    model: ModelProto, config: QuantizeConfig, context: Context
) -> tuple[ModelProto, dict[str, Any]]:
    """Return the graph with Q/DQ around integer operators, and the scheme that was used.

    Raises:
        PassError: there are no calibration feeds, nothing to cover, or the tool fails.
    """
    if not context.calibration:
        raise PassError("Static quantization needs calibration feeds, and there are none.")
    named, repaired = repair_floats(with_node_names(model), config, context)
    ranges, unbounded = _ranges(named, config, context)
    region = _region(named, config, unbounded)
    parted = with_own_constants(named, set(region))
    present = {node.op_type for node in model.graph.node}
    anchors = [op for op in ANCHORS if op in present]
    if not region:
        raise PassError(
            f"Static quantization covers {', '.join(ANCHORS)}; the graph has none of them that may"
            " be integer. Try --mode dynamic."
        )
    attempts = [
        {"per_channel": config.per_channel and per_channel, "extra": {**extra}}
        for per_channel, extra in ATTEMPTS
    ]
    quantized, used, given_up = first_that_works(
        lambda graph, *, per_channel, extra: _with_borders(
            graph, config, ranges=ranges, region=region, per_channel=per_channel, extra=extra
        ),
        parted,
        attempts,
    )
    shielded = shield_floats(quantized)
    quantized, mended = repair_integers(named, quantized, config, context)
    repaired |= mended
    if _minds_pairs(config):
        narrow_pairs(quantized)
    told = {
        "activations": _activations_told(config),
        "weights": _weights_told(config, per_channel=used["per_channel"]),
        "operators": anchors,
        "calibration_sets": len(context.calibration),
        "given_up": [*given_up, *without_effect(repaired)],
    }
    if repaired:
        told["repairs"] = repaired
    if shielded:
        told["shielded"] = shielded
    if unbounded:
        told["unbounded"] = sorted(unbounded)
    return quantized, {"static": told}


def _region(model: ModelProto, config: QuantizeConfig, unbounded: Collection[str]) -> list[str]:
    """Return the names of the nodes that become integer: none that touches an infinity."""
    touching = {
        node.name
        for node in model.graph.node
        if not {*node.input, *node.output}.isdisjoint(unbounded)
    }
    if config.only is not None:
        return [name for name in config.only if name not in touching]
    return integer_region(model, (*config.keep_float, *touching))


def integer_region(model: ModelProto, keep_float: tuple[str, ...] = ()) -> list[str]:
    """Return the names of anchors, and of followers fed by integers alone.

    A follower between float operators would only add quantize and dequantize steps.
    """
    constants = {each.name for each in model.graph.initializer}
    integers: set[str] = set()
    names = []
    for node in model.graph.node:  # topologically sorted, as ONNX demands
        activations = [name for name in node.input if name and name not in constants]
        can_follow = node.op_type in FOLLOWERS and not interpolates(node)
        follows = can_follow and bool(activations) and integers.issuperset(activations)
        if node.name in keep_float:
            continue
        if node.op_type in ANCHORS or follows:
            names.append(node.name)
            integers.update(node.output)
    return names


def interpolates(node: NodeProto) -> bool:
    """Whether a node is a Resize that makes new values, which ONNX Runtime does on floats."""
    given = {each.name: each.s for each in node.attribute if each.name == "mode"}
    return node.op_type == "Resize" and given.get("mode", b"nearest") != b"nearest"


def _ranges(
    model: ModelProto, config: QuantizeConfig, context: Context
) -> tuple[Mapping[str, Range], set[str]]:
    """Return the ranges of what can be integer, and the tensors that held infinities or NaN.

    Schemes of one graph share them. Infinities are what masks of attention are made of.
    """
    digest = hashlib.sha256(model.SerializeToString()).hexdigest()
    seen, chosen = f"seen in {digest}", f"{config.ranges} {config.activations} of {digest}"
    if seen not in context.kept:
        tensors = _activations(model)
        context.kept[seen] = calibrate(
            model, context.calibration, tensors=tensors, on_step=context.on_step
        )
    observed = context.kept[seen]
    unbounded = {name for name, each in observed.items() if each.not_finite}
    if chosen not in context.kept:
        bounded = {name: each for name, each in observed.items() if name not in unbounded}
        is_symmetric = config.activations == "int8"
        context.kept[chosen] = choose_ranges(
            bounded, bits=8, symmetric=is_symmetric, method=config.ranges
        )
    return cast(Mapping[str, Range], context.kept[chosen]), unbounded


def _activations(model: ModelProto) -> list[str]:
    """Return the tensors that nodes with an integer form read and make."""
    names = set(integer_region(model))
    constants = {each.name for each in model.graph.initializer}
    touched = {
        tensor: None
        for node in model.graph.node
        if node.name in names
        for tensor in (*node.input, *node.output)
        if tensor and tensor not in constants
    }
    return [*touched]


def _with_borders(
    model: ModelProto,
    config: QuantizeConfig,
    *,
    ranges: Mapping[str, Any],
    region: list[str],
    per_channel: bool,
    extra: Mapping[str, Any],
) -> ModelProto:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    kinds = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
    is_paired = _minds_pairs(config) and per_channel
    overrides = pair_scales(model, region) if is_paired else {}
    copy = ModelProto()
    copy.CopyFrom(model)
    quantizer = QDQQuantizer(
        copy,
        per_channel,
        config.reduce_range,
        kinds[config.weights],
        kinds[config.activations],
        to_tensors_data(ranges),
        region,
        [],
        [*ANCHORS, *FOLLOWERS],
        {
            "ActivationSymmetric": config.activations == "int8",
            # The tool drops a Relu that ranges make superfluous, though an inner graph reads it.
            "QDQKeepRemovableActivations": _is_read_inside(model),
            "TensorQuantOverrides": overrides,
            **extra,
        },
    )
    quantizer.quantize_model()
    quantized: ModelProto = quantizer.model.model
    return quantized


def _minds_pairs(config: QuantizeConfig) -> bool:
    """Whether products of uint8 and int8 are added two by two in int16."""
    kinds = (config.activations, config.weights)
    return config.reduce_range and kinds == ("uint8", "int8")


def _is_read_inside(model: ModelProto) -> bool:
    """Whether a graph inside an If, Loop or Scan reads a Clip or Relu of the main graph."""
    top = {name for node in model.graph.node for name in node.output}
    inner = (node for node in all_nodes(model.graph) if top.isdisjoint(node.output))
    read = {name for node in inner for name in node.input}
    made = {n for node in model.graph.node if node.op_type in ("Clip", "Relu") for n in node.output}
    return not read.isdisjoint(made)


def _weights_told(config: QuantizeConfig, *, per_channel: bool) -> str:
    told = weights_told(config, per_channel=per_channel)
    if not (_minds_pairs(config) and per_channel):
        return told
    return told.replace("7 of 8 bits", "8 bits, two products within int16")


def _activations_told(config: QuantizeConfig) -> str:
    kind = "uint8, asymmetric" if config.activations == "uint8" else "int8, symmetric"
    return f"{kind}, per tensor, ranges by {config.ranges}"
