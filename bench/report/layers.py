"""What the layers of a model tell: the longest ones, float ones that cost, and borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .document import Layer

__all__ = ["Kind", "Slice", "kind_of", "slices_of", "tell_layers"]

Kind = Literal["integer", "float", "border", "other"]
BORDER_OPS = ("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear")
ROLES: dict[str, Kind] = {"integer": "integer", "float": "float", "border": "border"}
MOST_SHOWN = 12
COSTLY_SHARE = 0.03


@dataclass(frozen=True)
class Slice:
    """One bar: a layer, or all the small ones together (without a limit)."""

    label: str
    ms: float
    share: float
    kind: Kind
    limit_ms: float | None = None


def slices_of(layers: Sequence[Layer]) -> list[Slice]:
    """Return the layers that take longest, the longest first, and the rest as one."""
    ordered = sorted(layers, key=lambda layer: layer.ms, reverse=True)
    shown = [_slice(layer) for layer in ordered[:MOST_SHOWN]]
    rest = ordered[MOST_SHOWN:]
    if rest:
        ms, share = sum(each.ms for each in rest), sum(each.share for each in rest)
        shown.append(Slice(f"{len(rest)} shorter layers together", ms, share, "other"))
    return shown


def kind_of(layer: Layer) -> Kind:
    """Return what a layer is, from its role, or from its operator where there is none."""
    if layer.role is not None:
        return ROLES.get(layer.role, "other")
    if layer.op in BORDER_OPS:
        return "border"
    if layer.is_integer:
        return "integer"
    return "float" if layer.macs else "other"


def tell_layers(layers: Sequence[Layer]) -> list[str]:
    """Name in sentences the costly float operators and what the borders around INT8 take."""
    told = [_costly_floats(layers)]
    borders = [each for each in layers if kind_of(each) == "border"]
    if borders:
        share, count = sum(each.share for each in borders), len(borders)
        nodes = "node" if count == 1 else "nodes"
        told.append(f"Quantizing and dequantizing: {share:.1%} of the time, in {count} {nodes}.")
    elif any(each.is_integer for each in layers):
        told.append("Quantizing and dequantizing: no node of its own.")
    return told


def _costly_floats(layers: Sequence[Layer]) -> str:
    shares: dict[str, float] = {}
    for layer in layers:
        if kind_of(layer) == "float":
            shares[layer.op] = shares.get(layer.op, 0.0) + layer.share
    ordered = sorted(shares.items(), key=lambda pair: pair[1], reverse=True)
    costly = [(op, share) for op, share in ordered if share >= COSTLY_SHARE]
    if not costly:
        return f"No float operator takes {COSTLY_SHARE:.0%} of the time or more."
    named = ", ".join(f"{op} ({share:.0%} of the time)" for op, share in costly)
    return f"Costly operators on floats: {named}."


def _slice(layer: Layer) -> Slice:
    label = f"{layer.op} · {layer.name}" if layer.name else layer.op
    return Slice(label, layer.ms, layer.share, kind_of(layer), layer.limit_ms)
