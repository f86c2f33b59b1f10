"""Read a GRU or LSTM node, and tell why one cannot be integer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from aigc_compress.passes.graphs import Shape

from .constants import Constants

__all__ = ["Layer", "read_layer"]

DEFAULT_ACTIVATIONS = ("sigmoid", "tanh")
GRU_LENGTHS = 4  # the input sequence_lens


@dataclass(frozen=True, eq=False)
class Layer:
    """The constant part of a GRU or LSTM with D directions and G gates.

    Attributes:
        w: float32 (D, G H, I).
        r: float32 (D, G H, H).
        b: float32 (D, 2 G H), or None where there is none or it is not constant.
        attributes: of the node.
        steps: T where it is known, else None.
    """

    w: NDArray[np.float32]
    r: NDArray[np.float32]
    b: NDArray[np.float32] | None
    attributes: Mapping[str, Any]
    steps: int | None

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.r.shape[2])

    @property
    def directions(self) -> int:
        """D."""
        return int(self.r.shape[0])

    @property
    def direction(self) -> str:
        """`forward`, `reverse` or `bidirectional`."""
        return str(self.attributes.get("direction", "forward"))


def read_layer(node: NodeProto, constants: Constants, shape: Shape | None) -> Layer | str:
    """Return what is constant in a node, or the reason why it stays float.

    Args:
        node: a GRU or LSTM.
        constants: what is constant where it stands.
        shape: of its input X, where known.
    """
    attributes = {each.name: _plain(each) for each in node.attribute}
    if attributes.get("layout", 0):
        return "layout 1 (batch first): no integer kernel or rewrite takes it"
    arrays = [constants.get(_input(node, position)) for position in (1, 2, 3)]
    w, r, b = arrays
    if w is None or r is None:
        return "its weights are computed at run time, not constant"
    if w.dtype != np.float32 or r.dtype != np.float32:
        return f"its weights are {w.dtype}; integer forms exist for float32"
    steps = shape[0] if shape else None
    layer = Layer(w, r, b, attributes, steps)
    why = _gru_reason(node, layer, constants) if node.op_type == "GRU" else None
    return why or layer


def _gru_reason(node: NodeProto, layer: Layer, constants: Constants) -> str | None:
    """Tell what the rewrite of GRU does not cover."""
    if layer.attributes.get("clip"):
        return "clip: the rewrite into integer products has none"
    activations = [each.lower() for each in layer.attributes.get("activations", ())]
    if activations and activations != [*DEFAULT_ACTIVATIONS] * layer.directions:
        return f"activations {', '.join(activations)}: only sigmoid and tanh are rewritten"
    if _input(node, 3) and layer.b is None:
        return "its bias is computed at run time, not constant"
    if lengths := _input(node, GRU_LENGTHS):
        values = constants.get(lengths)
        if values is None or layer.steps is None or (values != layer.steps).any():
            return "sequence_lens may be shorter than the input: the rewrite runs every step"
    return None


def _input(node: NodeProto, position: int) -> str:
    return str(node.input[position]) if len(node.input) > position else ""


def _plain(attribute: Any) -> Any:
    """Return an attribute's value with text as str."""
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    is_list = isinstance(value, list)
    return (
        [each.decode() if isinstance(each, bytes) else each for each in value] if is_list else value
    )
