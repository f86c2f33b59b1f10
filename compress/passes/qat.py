"""Quantization-aware training: a module that rounds as INT8 would while it is trained.

Weights of convolutions and linear layers are rounded symmetrically per output channel, their
inputs asymmetrically per tensor in 8 bits, with ranges averaged over batches (Jacob et al. 2018).
Gradients pass straight through (Bengio et al. 2013). Scales per output channel commute with a batch
norm that is folded into the layer later, so rounding before it is on the same grid.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

__all__ = ["add_fake_quant", "without_fake_quant"]

RANGE = "input_range"
MOMENTUM = 0.01  # of the ranges' running means
LEVELS = 255


def add_fake_quant(module: nn.Module, *, weight_bits: int) -> int:
    """Let a module's convolutions and linear layers round; return how many there are.

    Args:
        module: changed in place; `without_fake_quant` takes it back.
        weight_bits: of the scheme that the model is for.
    """
    layers = list(_layers(module))
    for layer in layers:
        axis = 1 if isinstance(layer, _ConvTransposeNd) and layer.groups == 1 else 0
        parametrize.register_parametrization(layer, "weight", _RoundedWeight(weight_bits, axis))
        layer.add_module(RANGE, _RoundedInput())
        layer.register_forward_pre_hook(_round_input)
    return len(layers)


def without_fake_quant(module: nn.Module) -> nn.Module:
    """Return a copy with the float weights that were trained, and no rounding."""
    plain = copy.deepcopy(module)
    for layer in list(_layers(plain)):
        if not hasattr(layer, RANGE):
            continue
        # Copies share the class that parametrize made, so its own way back would strip both.
        weight = layer.parametrizations.weight.original
        layer.__class__ = type(layer).__bases__[0]
        del layer.parametrizations
        layer.register_parameter("weight", nn.Parameter(weight.detach().clone()))
        delattr(layer, RANGE)
        layer._forward_pre_hooks.clear()
    return plain


def _layers(module: nn.Module) -> Iterator[Any]:
    return (each for each in module.modules() if isinstance(each, (_ConvNd, nn.Linear)))


def _round_input(layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (getattr(layer, RANGE)(inputs[0]), *inputs[1:])


class _RoundedWeight(nn.Module):
    """Round to integers of a few bits times a scale per output channel."""

    def __init__(self, bits: int, axis: int) -> None:
        super().__init__()
        self.largest, self.axis = 2 ** (bits - 1) - 1, axis

    def forward(self, weight: Tensor) -> Tensor:
        rest = [each for each in range(weight.ndim) if each != self.axis]
        scale = weight.detach().abs().amax(rest, keepdim=True).clamp_min(1e-12) / self.largest
        return _straight(weight, (weight / scale).round() * scale)


class _RoundedInput(nn.Module):
    """Round to 8 bits in a range that is averaged while training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    low: Tensor
    high: Tensor
    batches: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            found = x.detach().amin().float(), x.detach().amax().float()
            part = 1.0 if self.batches == 0 else MOMENTUM
            self.low.lerp_(found[0].clamp_max(0), part)
            self.high.lerp_(found[1].clamp_min(0), part)
            self.batches += 1
        if self.batches == 0:
            return x
        scale = ((self.high - self.low) / LEVELS).clamp_min(1e-12)
        zero = (-self.low / scale).round()
        steps = (x / scale + zero).clamp(0, LEVELS)  # beyond the range no gradient passes
        return ((steps + (steps.round() - steps).detach() - zero) * scale).to(x.dtype)


def _straight(value: Tensor, rounded: Tensor) -> Tensor:
    return value + (rounded - value).detach()
