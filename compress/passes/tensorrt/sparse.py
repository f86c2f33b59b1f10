"""Which layers have the 2:4 pattern that TensorRT's sparse kernels take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

__all__ = ["sparse_layers"]

GROUP, ZEROS = 4, 2
LAYERS = ("Conv", "Gemm", "MatMul")


def sparse_layers(model: ModelProto) -> list[str]:
    """Return the outputs of layers in whose weights two of every four inputs are zero.

    The four lie along the inputs, at one place of the kernel (Mishra et al. 2021, "Accelerating
    Sparse Deep Neural Networks"); weights may stand behind a DequantizeLinear.
    """
    stored = {each.name: each for each in model.graph.initializer}
    dequantized = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    found = []
    for node in model.graph.node:
        if node.op_type not in LAYERS:
            continue
        name = dequantized.get(node.input[1], node.input[1])
        if name in stored and _is_sparse(_inputs_last(node, numpy_helper.to_array(stored[name]))):
            found.append(node.output[0])
    return found


def _inputs_last(node: NodeProto, weight: NDArray[np.generic]) -> NDArray[np.generic]:
    if node.op_type == "Conv":
        return np.moveaxis(weight, 1, -1)
    is_turned = any(each.name == "transB" and each.i for each in node.attribute)
    return weight if is_turned or weight.ndim < 2 else np.swapaxes(weight, -1, -2)


def _is_sparse(weight: NDArray[np.generic]) -> bool:
    if weight.ndim < 2 or weight.shape[-1] % GROUP or not weight.size:
        return False
    fours = weight.reshape(-1, GROUP)
    return bool(((fours == 0).sum(axis=1) >= ZEROS).all())
