"""Make the channels between two layers equally large in the weights on both sides.

With one scale for a whole weight, a channel of small weights gets few of the 255 integers. Since
f(s x) = s f(x) for s > 0 and f such as Relu, dividing the outputs of channel c by s[c] in the layer
before and multiplying its inputs by s[c] in the layer behind changes nothing but float rounding.
Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.1: s[c] = sqrt(r1[c] / r2[c]), with r1 and r2 the largest magnitudes of the weights of
channel c before and behind (eq. 11), repeated over all pairs until nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from .folding.affine import Affine
from .folding.linear import Linear
from .layers import (
    POINTWISE,
    POOLS,
    STANDARD,
    input_sizes,
    layers_in,
    name_of,
    output_sizes,
    write_layer,
)

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["equalize"]

Floats = NDArray[np.float64]

ENOUGH = 1.005  # a round that changes no channel by more is the last
ROUNDS = 50


def equalize(
    model: ModelProto, *, most: float = 100.0
) -> tuple[ModelProto, dict[str, dict[str, float]]]:
    """Return the graph with equalized weights, and what was done by pair of layers.

    A pair is two of Conv, ConvTranspose, Gemm or MatMul with constant weights, depthwise ones too,
    with nothing between them but Relu, LeakyRelu or pooling, and nothing else that reads what is
    between them, the graph's outputs included.

    Args:
        model: a graph of floats.
        most: no channel's factor leaves [1 / most, most]. Without a bound a channel of tiny weights
            takes its bias, and so the range of the activations, beyond all others.

    Returns:
        The graph, and by `first -> second` (names of nodes, or of outputs where those have none)
        the `least` and the `greatest` factor s.
    """
    import onnx_ir as ir

    graph = ir.from_proto(model)
    links, layers = _links(graph.graph)
    for _ in range(ROUNDS):
        changes = [_balance(link, layers, most) for link in links]
        if max(changes, default=1.0) < ENOUGH:
            break
    for node in dict.fromkeys(each for link in links for each in (link.first, link.second)):
        write_layer(node, layers[node])
    told = {
        f"{name_of(link.first)} -> {name_of(link.second)}": {
            "least": float(link.factors.min()),
            "greatest": float(link.factors.max()),
        }
        for link in links
    }
    return ir.to_proto(graph), told


@dataclass(eq=False)
class _Link:
    """Two layers, and the factors s of the channels between them so far, float64 (channels,)."""

    first: ir.Node
    second: ir.Node
    factors: Floats = field(repr=False)


def _links(graph: ir.Graph) -> tuple[list[_Link], dict[ir.Node, Linear]]:
    """Return the pairs of layers that can be balanced, and the arithmetic of all layers."""
    layers = layers_in(graph)
    links = []
    for first, linear in layers.items():
        second = _next_layer(graph, first, pools=linear.axis == 1)
        if second in layers and layers[second].inputs == linear.outputs:
            links.append(_Link(first, second, np.ones(linear.outputs.channels)))
    return links, layers


def _next_layer(graph: ir.Graph, node: ir.Node, *, pools: bool) -> ir.Node | None:
    """Return what alone reads a layer's output, through operators that hand factors on."""
    while True:
        (output,) = node.outputs
        uses = output.uses()
        if output.is_graph_output() or len(uses) != 1:
            return None
        ((node, index),) = uses
        if node.graph is not graph or index != 0 or node.domain not in STANDARD:
            return None
        hands_on = node.op_type in POINTWISE or (pools and node.op_type in POOLS)
        if not hands_on or len(node.outputs) != 1:
            return node


def _balance(link: _Link, layers: dict[ir.Node, Linear], most: float) -> float:
    """Balance one pair, in place; return by what factor the channel changed that changed most."""
    first, second = layers[link.first], layers[link.second]
    before, behind = output_sizes(first), input_sizes(second)
    is_used = (before > 0) & (behind > 0)
    ratio = np.divide(before, behind, out=np.ones_like(before), where=is_used)
    factors = np.clip(link.factors * np.sqrt(ratio), 1 / most, most)
    change = factors / link.factors
    nothing = np.zeros_like(change)
    scaled = second.after(Affine(change, nothing))
    assert scaled is not None  # a map without a shift is always taken in
    layers[link.first], layers[link.second] = first.then(Affine(1 / change, nothing)), scaled
    link.factors = factors
    return float(np.exp(np.abs(np.log(change)).max()))
