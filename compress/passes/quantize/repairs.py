"""Repairs where plain static INT8 misses its quality: which a graph allows, and how they are done.

| repair | what it does | where it helps |
| --- | --- | --- |
| `equalize` | balances weights of layers in a row, on floats | one scale per tensor, depthwise |
| `smooth` | shrinks activation channels that stand out, on floats | a few channels far larger |
| `rounding` | rounds weights for the outputs of their layer | inputs that depend on each other |
| `correct_bias` | takes mean errors out of layers | deep chains of Conv and Relu |

None of them costs time when the graph runs. The first two change the graph that ranges are read
from; the last comes last, as it takes out what all others have left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

from onnx import ModelProto

from aigc_compress.passes.base import Context
from aigc_compress.passes.bias import correct_biases
from aigc_compress.passes.equalize import equalize
from aigc_compress.passes.rounding import round_weights
from aigc_compress.passes.smooth import smooth, smoothable

from .config import QuantizeConfig

__all__ = ["asked", "repair_floats", "repair_integers", "repairs", "without_effect"]

Told = dict[str, dict[str, Any]]

ALPHA = 0.5
SETS = 32  # of calibration feeds that weights and biases are fitted to
NO_EFFECT: Mapping[str, str] = {
    "equalize": "no two layers follow each other through Relu, LeakyRelu or pools alone",
    "smooth": "no activation is made by what can take factors in and read by layers alone",
    "rounding": "no layer has constant integer weights of its own",
    "correct_bias": "no layer has a constant bias of its own",
}


def repairs(model: ModelProto, config: QuantizeConfig) -> tuple[QuantizeConfig, ...]:
    """Return variants of a scheme that are worth a try, the likeliest gain first.

    Rounding and biases repair what stays of every scheme, so they are in all of them. Smoothing
    and equalization pull at the same weights from two sides, so they are tried apart: the former
    first, as it sees activations too.

    Args:
        model: the folded graph of floats.
        config: the scheme; what it repairs already stays.
    """
    return tuple(each for each in _variants(model, config) if each != config)


def _variants(model: ModelProto, config: QuantizeConfig) -> Iterator[QuantizeConfig]:
    """Yield variants that can touch something in this graph."""
    if config.mode == "dynamic" or not _has_layers(model):
        return
    fitted = config.model_copy(update={"rounding": "adaptive", "correct_bias": True})
    yield fitted
    if config.smooth is None and smoothable(model):
        yield fitted.model_copy(update={"smooth": ALPHA})
    if not config.equalize and equalize(model)[1]:
        yield fitted.model_copy(update={"equalize": True})


def _has_layers(model: ModelProto) -> bool:
    constants = {each.name for each in model.graph.initializer}
    nodes = (node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))
    return any(node.input[1] in constants for node in nodes)


def asked(config: QuantizeConfig) -> tuple[str, ...]:
    """Return the names of the repairs that a scheme asks for, in the order of the work."""
    wanted = {
        "equalize": config.equalize,
        "smooth": config.smooth is not None,
        "rounding": config.rounding == "adaptive",
        "correct_bias": config.correct_bias,
    }
    return tuple(name for name, is_wanted in wanted.items() if is_wanted)


def repair_floats(
    model: ModelProto, config: QuantizeConfig, context: Context
) -> tuple[ModelProto, Told]:
    """Return the graph with the same outputs from weights and activations that lose less.

    Names of nodes stay. A graph is repaired once for all schemes that ask for the same.
    """
    if not config.equalize and config.smooth is None:
        return model, {}
    digest = hashlib.sha256(model.SerializeToString()).hexdigest()
    key = f"repaired, equalize {config.equalize}, smooth {config.smooth}, of {digest}"
    if key not in context.kept:
        context.kept[key] = _repaired(model, config, context)
    repaired, told = cast(tuple[ModelProto, Told], context.kept[key])
    return repaired, dict(told)


def _repaired(
    model: ModelProto, config: QuantizeConfig, context: Context
) -> tuple[ModelProto, Told]:
    told: Told = {}
    if config.equalize:
        model, pairs = equalize(model)
        told["equalize"] = {"pairs": len(pairs)}
    if config.smooth is not None:
        model, sites = smooth(model, context.calibration, alpha=config.smooth)
        told["smooth"] = {"activations": len(sites), "alpha": config.smooth}
    return model, told


def repair_integers(
    floats: ModelProto, quantized: ModelProto, config: QuantizeConfig, context: Context
) -> tuple[ModelProto, Told]:
    """Return the quantized graph with weights rounded and biases shifted for its outputs."""
    told: Told = {}
    feeds = context.calibration[:SETS]
    if config.rounding == "adaptive":
        quantized, layers = round_weights(
            floats, quantized, feeds, seed=context.seed, on_step=context.on_step
        )
        told["rounding"] = {
            "layers": len(layers),
            "moved": sum(each.moved for each in layers.values()),
            "weights": sum(each.weights for each in layers.values()),
        }
    if config.correct_bias:
        quantized, shifted = correct_biases(floats, quantized, feeds, on_step=context.on_step)
        told["correct_bias"] = {"layers": len(shifted)}
    return quantized, told


def without_effect(told: Told) -> list[str]:
    """Return, in words, which repairs found nothing to touch."""
    idle = [name for name, each in told.items() if not next(iter(each.values()))]
    return [f"{name} touched nothing: {NO_EFFECT[name]}" for name in idle]
