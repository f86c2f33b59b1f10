"""Which widths a target runs fast: a table of width against milliseconds for each kind of layer.

A kind is an operator with its kernel and strides; its widest layer stands for it, with the input
that it has in the model. What is timed is that layer at many widths, and a pointwise product back
to the full width, since units that go shorten what reads them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from aigc_compress.task import Feeds, OnStep

from ..draft import Draft
from .trials import Prunable

__all__ = ["WidthTable", "fast_widths", "measure_widths"]

POINTS = 24  # widths of a table, at most, and the full one
SAVED = 0.03  # share of the time that a narrower layer must save; less is noise
OPSET, IR_VERSION = 17, 8
TimesOf = Callable[[Sequence[ModelProto], Feeds], Sequence[float]]


@dataclass(frozen=True)
class WidthTable:
    """What layers of a kind take.

    Attributes:
        kind: operator, kernel and strides.
        layer: the path of the layer that stands for it.
        milliseconds: by width, the widest first.
        families: names of the families whose units are this kind's outputs.
    """

    kind: str
    layer: str
    milliseconds: dict[int, float]
    families: tuple[str, ...]

    @property
    def fast(self) -> tuple[int, ...]:
        """Return the widths worth stopping at, the widest first."""
        return fast_widths(self.milliseconds)


def fast_widths(milliseconds: Mapping[int, float]) -> tuple[int, ...]:
    """Return the widest width, and below each the next that is clearly faster.

    Between two of them lie widths that give up units and gain no time, since the engine works in
    blocks: of 8 or 16 channels, say.
    """
    found: list[int] = []
    for width in sorted(milliseconds, reverse=True):
        if not found or milliseconds[width] < (1 - SAVED) * milliseconds[found[-1]]:
            found.append(width)
    return tuple(found)


def measure_widths(
    prunable: Prunable,
    inputs: Sequence[torch.Tensor],
    times_of: TimesOf,
    on_step: OnStep,
) -> list[WidthTable]:
    """Return a table for every kind of layer that makes units that can be pruned.

    Args:
        prunable: the module's families.
        inputs: arguments of its forward, as large as a call whose time counts.
        times_of: tells the milliseconds of graphs, all on the same feeds.
        on_step: called with (kinds timed, kinds).
    """
    shapes = _input_shapes(prunable.module, inputs)
    members: dict[str, list[str]] = {}
    widest: dict[str, str] = {}
    for family in prunable.families:
        path = family.name.rpartition(".")[0]
        layer = prunable.module.get_submodule(path)
        kind = _kind(layer)
        # Units of several channels, as heads are, have no width of their own in a table.
        if kind is None or path not in shapes or _width(layer) != len(family.units):
            continue
        members.setdefault(kind, []).append(family.name)
        known = widest.setdefault(kind, path)
        if _width(layer) > _width(prunable.module.get_submodule(known)):
            widest[kind] = path
    tables: list[WidthTable] = []
    for kind, path in widest.items():
        on_step(len(tables), len(widest))
        layer = prunable.module.get_submodule(path)
        widths = _points(_width(layer))
        feeds = {"x": np.random.default_rng(0).normal(size=shapes[path]).astype(np.float32)}
        times = times_of([_model(layer, shapes[path], width) for width in widths], feeds)
        measured = dict(zip(widths, map(float, times), strict=True))
        tables.append(WidthTable(kind, path, measured, tuple(members[kind])))
    return tables


def _points(width: int) -> list[int]:
    """Return the widths to time: multiples of a power of two, and the full one."""
    step = 1
    while width > POINTS * step:
        step *= 2
    return [width, *range((width - 1) // step * step, 0, -step)]


@torch.no_grad()
def _input_shapes(module: nn.Module, inputs: Sequence[torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of the first input of every layer of a known kind, in ONNX's order."""
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = []
    for path, layer in module.named_modules():
        if _kind(layer) is not None:

            def note(layer: Any, given: Any, _made: Any, path: str = path) -> None:
                shape = _onnx_shape(layer, given[0])
                if shape:
                    shapes.setdefault(path, shape)

            hooks.append(layer.register_forward_hook(note))
    try:
        module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _onnx_shape(layer: Any, value: Any) -> tuple[int, ...]:
    """Return an input's shape; none where the layer is called in a way that ONNX spells anew."""
    shape = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
    if isinstance(layer, nn.RNNBase):
        if len(shape) != 3:
            return ()
        return (shape[1], shape[0], shape[2]) if layer.batch_first else shape
    if isinstance(layer, _ConvNd) and len(shape) != len(layer.kernel_size) + 2:
        return ()
    return shape


def _kind(layer: nn.Module) -> str | None:
    """Return the kind of a layer, or None where it has no table."""
    if isinstance(layer, _ConvNd) and layer.groups == 1 and layer.padding_mode == "zeros":
        if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)):
            return None
        parts = ["x".join(map(str, layer.kernel_size))]
        for name in ("stride", "dilation"):
            values = getattr(layer, name)
            if max(values) > 1:
                parts.append(f"{name} {'x'.join(map(str, values))}")
        return " ".join([_operator(layer), *parts])
    if type(layer) is nn.Linear or (isinstance(layer, (nn.LSTM, nn.GRU)) and not layer.proj_size):
        return _operator(layer)
    return None


def _operator(layer: nn.Module) -> str:
    kinds: tuple[Any, ...] = (_ConvTransposeNd, nn.LSTM, nn.GRU, nn.Linear)
    names = ("ConvTranspose", "LSTM", "GRU", "Linear")
    return next((n for n, k in zip(names, kinds, strict=True) if isinstance(layer, k)), "Conv")


def _width(layer: Any) -> int:
    names = ("out_channels", "out_features", "hidden_size")
    return int(next(getattr(layer, name) for name in names if hasattr(layer, name)))


def _model(layer: Any, shape: tuple[int, ...], width: int) -> ModelProto:
    """Return the layer at some width, and what leads back to its full width, as a graph."""
    rng = np.random.default_rng(0)
    draft = Draft("layer", OPSET)

    def weights(name: str, *sizes: int) -> str:
        return draft.constant(rng.normal(0, 0.05, sizes).astype(np.float32), name)

    whole = _width(layer)
    if isinstance(layer, _ConvNd):
        made = _convolution(draft, layer, shape[1], width, weights)
        ones = [1] * len(layer.kernel_size)
        made = draft.add("Conv", made, weights("back", whole, width, *ones))
    else:
        if isinstance(layer, nn.Linear):
            made = draft.add("MatMul", "x", weights("w", shape[-1], width))
        else:
            made = _recurrence(draft, layer, shape[-1], width, weights)
        made = draft.add("MatMul", made, weights("back", width, whole))
    draft.rename(made, "y")
    graph = helper.make_graph(
        draft.nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        draft.constants,
    )
    imports = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


def _convolution(
    draft: Draft, layer: Any, channels: int, width: int, weights: Callable[..., str]
) -> str:
    settings: dict[str, Any] = {"strides": layer.stride, "dilations": layer.dilation}
    padding = layer.padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        padding = [each // 2 if padding == "same" else 0 for each in reach]
    settings["pads"] = [*padding, *padding]
    if isinstance(layer, _ConvTransposeNd):
        settings["output_padding"] = layer.output_padding
        return draft.add(
            "ConvTranspose", "x", weights("w", channels, width, *layer.kernel_size), **settings
        )
    return draft.add("Conv", "x", weights("w", width, channels, *layer.kernel_size), **settings)


def _recurrence(
    draft: Draft, layer: Any, features: int, width: int, weights: Callable[..., str]
) -> str:
    """One direction; torch's GRU multiplies by the reset gate after the product."""
    gates = 4 if isinstance(layer, nn.LSTM) else 3
    more = {} if gates == 4 else {"linear_before_reset": 1}
    made = draft.add(
        _operator(layer),
        "x",
        weights("w", 1, gates * width, features),
        weights("r", 1, gates * width, width),
        weights("b", 1, 2 * gates * width),
        hidden_size=width,
        **more,
    )
    axes = draft.constant(np.array([1], np.int64), "axes")
    return draft.add("Squeeze", made, axes)
