"""Find layers whose INT8 results differ from processor to processor.

Without VNNI, x86 multiplies uint8 activations with int8 weights two by two and adds both products
in int16 (VPMADDUBSW), where the sum ends at 32767 and -32768. With VNNI, AMX or on ARM it does not.
So one file gives different numbers on different machines, wherever such a sum goes further.

Which two are added is the kernel's choice. Assumed is that of ONNX Runtime 1.32 (MLAS): neighbours
2i and 2i + 1 along the reduction, where input channels are innermost and the taps of a convolution
outside them. Depthwise convolutions are multiplied one by one there, in more bits. Other kernels
may pair differently, so the static statement holds for the order assumed, the measured one for the
feeds too; weights within [-64, 64] (7 bits) cannot saturate in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from aigc_compress.task import Feeds, OnStep

from .integer_products import IntegerProduct, Integers, find_products, neighbours
from .probe import Probe

__all__ = ["Saturation", "find_saturation"]

LOWEST, HIGHEST, LARGEST_ACTIVATION = -32768, 32767, 255
POSITIONS = CHANNELS = 64
MOST_PRODUCTS = 2**22  # at a time, so that a layer takes some tens of milliseconds per set of feeds
DEPTHWISE = "depthwise: multiplied one by one, in more than 16 bits"
INSIDE = "it stands inside an If, Loop or Scan, where nothing is watched"


@dataclass(frozen=True)
class Saturation:
    """What may saturate in one layer on x86 without VNNI.

    Attributes:
        name: of the node.
        operator: its type.
        output: name of its first output.
        pairs: adjacent pairs of weights that are added in int16.
        can_saturate: share of them whose sum can leave int16 for some activations, 0 to 1.
        worst: the largest sum possible over what int16 holds; saturates above 1.
        sums: share of sums that did saturate on the feeds, of those sampled; None: not measured.
        outputs: share of outputs that such a sum went into; None: not measured.
        part: which of several products of one node: `inputs` or `states` of an LSTM.
        note: why something is not checked or not measured.
    """

    name: str
    operator: str
    output: str
    pairs: int = 0
    can_saturate: float = 0.0
    worst: float = 0.0
    sums: float | None = None
    outputs: float | None = None
    part: str = ""
    note: str = ""

    @property
    def is_possible(self) -> bool:
        """Whether some activations make it saturate."""
        return self.worst > 1

    @property
    def severity(self) -> tuple[float, float, float]:
        """What findings are sorted by: outputs hit, pairs that can saturate, the worst sum."""
        return (self.outputs or 0.0, self.can_saturate, self.worst)


def find_saturation(
    model: ModelProto,
    feeds: Iterable[Feeds] = (),
    *,
    seed: int = 0,
    on_product: OnStep = lambda _done, _total: None,
) -> tuple[Saturation, ...]:
    """Return a finding for every product of uint8 activations and int8 weights, the worst first.

    The graph is taken as it is: with Q/DQ, with integer operators, or dynamically quantized. It is
    run with ONNX Runtime on this machine, whose own results feed later layers.

    Args:
        model: a quantized graph; one of floats has no findings.
        feeds: what sums are measured on; without any there is the static statement alone.
        seed: of the positions and output channels that are sampled.
        on_product: called with (done, total) after each layer and set of feeds.

    Raises:
        PassError: ONNX Runtime does not load or run the graph.
    """
    products = [each for each in find_products(model) if each.note or _is_mixed(each)]
    measured = _measure(model, products, list(feeds), seed=seed, on_product=on_product)
    found = [_finding(each, measured.get(index)) for index, each in enumerate(products)]
    return tuple(sorted(found, key=lambda each: each.severity, reverse=True))


@dataclass
class _Counts:
    """Of sampled sums and outputs, all and saturated."""

    sums: int = 0
    bad_sums: int = 0
    outputs: int = 0
    bad_outputs: int = 0

    def add(self, is_bad: NDArray[np.bool_]) -> None:
        """Count sums (P, M, pairs)."""
        self.sums += is_bad.size
        self.bad_sums += int(is_bad.sum())
        self.outputs += is_bad.shape[0] * is_bad.shape[1]
        self.bad_outputs += int(is_bad.any(-1).sum())


def _is_mixed(product: IntegerProduct) -> bool:
    return product.is_unsigned and product.weights.dtype == np.int8


def _finding(product: IntegerProduct, counts: _Counts | None) -> Saturation:
    weights = product.weights
    found = Saturation(product.name, product.operator, product.output, part=product.part)
    if not weights.size:
        return replace(found, note=product.note)
    if product.is_depthwise:
        return replace(found, sums=0.0, outputs=0.0, note=DEPTHWISE)
    extremes = _extremes(weights)
    share, worst = float((extremes > 1).mean()), float(extremes.max())
    found = replace(found, pairs=extremes.size, can_saturate=share, worst=worst)
    if worst <= 1:
        return replace(found, sums=0.0, outputs=0.0)
    if counts is None or not counts.sums:
        return replace(found, note=INSIDE if product.is_inside else product.note)
    sums, outputs = counts.bad_sums / counts.sums, counts.bad_outputs / counts.outputs
    return replace(found, sums=sums, outputs=outputs)


def _extremes(weights: Integers) -> NDArray[np.float64]:
    """Return the largest sum possible over what int16 holds: (M, pairs) of (M, K).

    It is largest where activations are 255 beside weights of one sign and 0 beside the others.
    """
    pairs = neighbours(weights.astype(np.int32))
    high = LARGEST_ACTIVATION * np.maximum(pairs, 0).sum(-1) / HIGHEST
    low = LARGEST_ACTIVATION * np.minimum(pairs, 0).sum(-1) / LOWEST
    larger: NDArray[np.float64] = np.maximum(high, low)
    return larger


def _measure(
    model: ModelProto,
    products: Sequence[IntegerProduct],
    feeds: Sequence[Feeds],
    *,
    seed: int,
    on_product: OnStep,
) -> dict[int, _Counts]:
    """Return counts by index of the product; of those where something can saturate."""
    counts = {index: _Counts() for index, each in enumerate(products) if _is_watched(each)}
    by_tensor: dict[str, list[int]] = {}
    for index in counts:
        by_tensor.setdefault(products[index].activations, []).append(index)
    if not counts or not feeds:
        return {}
    probe, done = Probe(model, [*by_tensor]), 0
    for place, each in enumerate(feeds):
        for name, values in probe.run(each):
            for index in by_tensor[name]:
                rng = np.random.default_rng((seed, place, index))
                _count(products[index], values, rng, counts[index])
                done += 1
                on_product(done, len(counts) * len(feeds))
    return counts


def _is_watched(product: IntegerProduct) -> bool:
    if product.note or product.is_inside or product.is_depthwise:
        return False
    return bool((_extremes(product.weights) > 1).any())


def _count(
    product: IntegerProduct, values: NDArray[Any], rng: np.random.Generator, counts: _Counts
) -> None:
    """Count the sums of some output channels at some positions, all pairs of each."""
    weights = product.weights
    channels = np.sort(rng.choice(len(weights), min(CHANNELS, len(weights)), replace=False))
    fitting = MOST_PRODUCTS // (len(channels) * weights.shape[1])
    rows = product.rows(values, rng, max(1, min(POSITIONS, fitting)))
    groups = channels // (len(weights) // product.groups)
    for group in np.unique(groups):
        given = neighbours(rows[:, group].astype(np.int32))[:, None]
        chosen = weights[channels[groups == group]].astype(np.int32)
        sums = (given * neighbours(chosen)[None]).sum(-1)
        counts.add((sums < LOWEST) | (sums > HIGHEST))
