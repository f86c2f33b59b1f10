"""Check that a graph's Quantize- and DequantizeLinear are what TensorRT takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from aigc_compress.errors import PassError
from aigc_compress.passes.operators import BORDERS

__all__ = ["require_symmetric"]


def require_symmetric(model: ModelProto) -> None:
    """Raise PassError unless every border is int8 with zero point 0 and a positive scale.

    TensorRT refuses other zero points, and an int32 bias behind DequantizeLinear.
    """
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in BORDERS:
            _require_symmetric_border(node, constants)


def _require_symmetric_border(node: NodeProto, constants: dict[str, NDArray[Any]]) -> None:
    scale = constants.get(node.input[1])
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise PassError(f"{node.name or node.op_type} has no constant, positive scale.")
    if zero is None or zero.dtype != np.int8 or zero.any():
        found = "none" if zero is None else f"{zero.dtype.name} {zero.ravel()[:3].tolist()}"
        raise PassError(
            f"{node.name or node.op_type} has the zero point {found}; it must be int8 0."
        )
