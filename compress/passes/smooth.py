"""Shrink the activation channels that stand out, and grow the weights that read them instead.

One scale serves a whole activation, so one channel of large values leaves few of the 256 integers
to all others. Dividing channel j by s[j] where it is made, and multiplying the weights that read it
by s[j], changes nothing but float rounding. Xiao et al. 2023, "SmoothQuant: Accurate and Efficient
Post-Training Quantization for Large Language Models", eq. 4: s[j] = max|X[j]|^alpha /
max|W[j]|^(1 - alpha). The division is taken in by what makes the activation: a layer's weights, the
scale of a LayerNormalization, constants of Mul and Add. Where nothing can take it in, the
activation stays as it is: a Mul of its own would cost more time than integers save.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from aigc_compress.errors import PassError, UsageError
from aigc_compress.task import Feeds

from .folding.affine import Affine, Layout, constant_of, per_channel
from .folding.linear import Linear
from .layers import (
    POINTWISE,
    POOLS,
    STANDARD,
    input_sizes,
    layers_in,
    replace_constant,
    write_layer,
)
from .probe import Probe

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["smooth", "smoothable"]

Floats = NDArray[np.float64]
Layers = dict["ir.Node", Linear]


def smooth(
    model: ModelProto, feeds: Iterable[Feeds], *, alpha: float = 0.5, most: float = 100.0
) -> tuple[ModelProto, dict[str, dict[str, float]]]:
    """Return the graph with smoothed activations, and what was done by activation.

    An activation is smoothed where nothing but Conv, ConvTranspose, Gemm or MatMul with constant
    weights reads it, and what makes it can take the factors in.

    Args:
        model: a graph of floats.
        feeds: calibration feeds, which tell the sizes of channels.
        alpha: in [0, 1]; how much of the difference between channels goes to the weights.
        most: no channel's factor leaves [1 / most, most] times their geometric mean.

    Returns:
        The graph, and by name of the activation the `least` and the `greatest` factor s, and the
        number of `layers` that read it.

    Raises:
        UsageError: alpha is out of bounds.
        PassError: there are no feeds, or ONNX Runtime does not run the graph.
    """
    import onnx_ir as ir

    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is {alpha}; it must be in [0, 1]. 0.5 is usual.")
    graph = ir.from_proto(model)
    layers = layers_in(graph.graph)
    sites = _sites(graph.graph, layers)
    sizes = _channel_sizes(model, sites, feeds)
    told = {}
    for site in sites:
        factors = _factors(sizes[site.name], site, layers, alpha=alpha, most=most)
        _scale(site, factors, layers)
        told[site.name] = {
            "least": float(factors.min()),
            "greatest": float(factors.max()),
            "layers": len(site.readers),
        }
    for node in dict.fromkeys(each for site in sites for each in (*site.readers, *site.makers)):
        if node in layers:
            write_layer(node, layers[node])
    return ir.to_proto(graph), told


def smoothable(model: ModelProto) -> tuple[str, ...]:
    """Return the names of the activations that `smooth` would work on."""
    import onnx_ir as ir

    graph = ir.from_proto(model).graph
    return tuple(site.name for site in _sites(graph, layers_in(graph)))


@dataclass(frozen=True)
class _Site:
    """One activation that can be smoothed.

    Attributes:
        name: of the tensor.
        layout: where its channels stand.
        readers: layers that read it.
        makers: what takes the factors in, all of them together.
    """

    name: str
    layout: Layout
    readers: tuple[ir.Node, ...]
    makers: tuple[ir.Node, ...]


def _sites(graph: ir.Graph, layers: Layers) -> list[_Site]:
    """Return the activations that can be smoothed, in the order in which they are made."""
    sites = []
    for value in dict.fromkeys(node.inputs[0] for node in layers):
        if value is None or value.is_graph_output():
            continue
        readers = tuple(node for node, index in value.uses() if node in layers and index == 0)
        layouts = {layers[node].inputs for node in readers}
        if len(readers) != len(value.uses()) or len(layouts) != 1:
            continue
        (layout,) = layouts
        makers = _makers(graph, value, layout, layers)
        if makers is not None:
            sites.append(_Site(str(value.name), layout, readers, makers))
    return sites


def _makers(
    graph: ir.Graph, value: ir.Value, layout: Layout, layers: Layers
) -> tuple[ir.Node, ...] | None:
    """Return the nodes that can scale a value's channels together, or None where none can."""
    node = value.producer()
    if node is None or node.graph is not graph or node.domain not in STANDARD:
        return None
    if len(node.outputs) != 1:
        return None
    if node in layers:
        return (node,) if layers[node].outputs == layout else None
    if node.op_type == "LayerNormalization":
        return (node,) if _ends_in(node, layout) else None
    if node.op_type in POINTWISE or (layout.axis == 1 and node.op_type in POOLS):
        return _inner_makers(graph, node.inputs[0], layout, layers)
    at = _constant_at(node, layout)
    if at is None or node.op_type == "Mul":
        return None if at is None else (node,)
    others = _inner_makers(graph, node.inputs[1 - at], layout, layers)
    return None if others is None else (node, *others)


def _inner_makers(
    graph: ir.Graph, value: ir.Value | None, layout: Layout, layers: Layers
) -> tuple[ir.Node, ...] | None:
    """Return the makers of a value that one node alone may read."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    return _makers(graph, value, layout, layers)


def _ends_in(node: ir.Node, layout: Layout) -> bool:
    """Whether a LayerNormalization has constant tables over the channels alone, the last axis."""
    given = node.attributes.get("axis")
    axis = -1 if given is None else given.as_int()
    last = -1 if layout.rank is None else layout.rank - 1
    tables = [constant_of(each) for each in node.inputs[1:] if each is not None]
    is_last = layout.axis == last and axis in (-1, last)
    return is_last and all(t is not None and t.shape == (layout.channels,) for t in tables)


def _constant_at(node: ir.Node, layout: Layout) -> int | None:
    """Return which operand of a Mul or Add is a constant per channel, if one is."""
    if node.op_type not in ("Add", "Mul"):
        return None
    for index, operand in enumerate(node.inputs):
        table = constant_of(operand)
        if table is not None and per_channel(table, layout) is not None:
            return index
    return None


def _channel_sizes(
    model: ModelProto, sites: Sequence[_Site], feeds: Iterable[Feeds]
) -> dict[str, Floats]:
    """Return by activation the largest magnitude of each channel, float64 (channels,)."""
    axes = {site.name: site.layout.axis for site in sites}
    sizes: dict[str, Floats] = {}
    probe = Probe(model, list(axes))
    for each in feeds if axes else ():
        for name, values in probe.run(each):
            channels = np.moveaxis(values, axes[name], 0).reshape(values.shape[axes[name]], -1)
            largest = np.abs(channels).max(axis=1, initial=0).astype(np.float64)
            sizes[name] = np.maximum(sizes.get(name, 0.0), largest)
    if axes and not sizes:
        raise PassError("Smoothing needs calibration feeds, and there are none.")
    return sizes


def _factors(
    activations: Floats, site: _Site, layers: Layers, *, alpha: float, most: float
) -> Floats:
    """Return s of eq. 4; 1 for channels that are zero throughout, or that nothing weighs."""
    weights = np.max([input_sizes(layers[node]) for node in site.readers], axis=0)
    is_used = (activations > 0) & (weights > 0) & np.isfinite(activations)
    factors = np.ones_like(activations)
    logs = alpha * np.log(activations[is_used]) - (1 - alpha) * np.log(weights[is_used])
    # A factor common to all channels changes no ratio, so their mean is taken out.
    bound = np.log(most)
    factors[is_used] = np.exp(np.clip(logs - logs.mean(), -bound, bound)) if logs.size else 1.0
    return factors


def _scale(site: _Site, factors: Floats, layers: Layers) -> None:
    """Divide an activation's channels where they are made, multiply where they are read."""
    nothing = np.zeros_like(factors)
    for node in site.readers:
        scaled = layers[node].after(Affine(factors, nothing))
        assert scaled is not None  # a map without a shift is always taken in
        layers[node] = scaled
    for node in site.makers:
        if node in layers:
            layers[node] = layers[node].then(Affine(1 / factors, nothing))
        else:
            _divide_constants(node, factors, site.layout)


def _divide_constants(node: ir.Node, factors: Floats, layout: Layout) -> None:
    """Divide the tables of a LayerNormalization, or a Mul's or Add's constant, in place."""
    if node.op_type == "LayerNormalization":
        for index, operand in enumerate(node.inputs[1:], 1):
            table = constant_of(operand)
            if table is not None:
                replace_constant(node, index, table / factors)
        return
    at = _constant_at(node, layout)
    assert at is not None
    table = constant_of(node.inputs[at])
    assert table is not None
    values = per_channel(table, layout)
    assert values is not None
    behind = 0 if layout.rank is None else layout.rank - 1 - layout.axis
    replace_constant(node, at, (values / factors).reshape(-1, *[1] * behind))
