"""Dynamic INT8: weights are integers, ranges of activations are measured at every call."""

from __future__ import annotations

from typing import Any

from onnx import ModelProto

from aigc_compress.passes.base import Context
from aigc_compress.passes.recurrent import quantize_recurrent

from .config import QuantizeConfig
from .tools import first_that_works, through_file

__all__ = ["quantize_dynamic"]


def quantize_dynamic(
    model: ModelProto, config: QuantizeConfig, _context: Context
) -> tuple[ModelProto, dict[str, Any]]:
    """Return the graph with dynamic LSTM, GRU and MatMul, and what became of them."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as tool

    model, layers = quantize_recurrent(
        model, per_channel=config.per_channel, reduce_range=config.reduce_range
    )
    fixed = {
        "op_types_to_quantize": ["MatMul"],
        "nodes_to_exclude": _kept_float(model, config),
        "per_channel": config.per_channel,
        "reduce_range": config.reduce_range,
        "weight_type": QuantType.QInt8,
    }
    attempts = [{**fixed, "extra_options": {"EnableSubgraph": inside}} for inside in (True, False)]
    quantized, _, given_up = first_that_works(
        lambda graph, **options: through_file(tool, graph, **options), model, attempts
    )
    told = {
        "activations": "uint8, ranges measured at run time",
        "weights": weights_told(config, per_channel=config.per_channel),
        "recurrent": layers,
        "given_up": given_up,
    }
    return quantized, {"dynamic": told}


def _kept_float(model: ModelProto, config: QuantizeConfig) -> list[str]:
    """Return the nodes that stay as they are: where some are named as integer, all others do."""
    if config.only is None:
        return [*config.keep_float]
    return [node.name for node in model.graph.node if node.op_type == "MatMul"]


def weights_told(config: QuantizeConfig, *, per_channel: bool) -> str:
    """Return how weights are stored, in words."""
    bits = "7 of 8 bits" if config.reduce_range else "8 bits"
    kind = "int8, symmetric" if config.weights == "int8" else "uint8, asymmetric"
    return f"{kind}, per {'channel' if per_channel else 'tensor'}, {bits}"
