"""Models of one layer alone, in float and in INT8: what a meter is handed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader

from aigc_compress.passes.base import Context, quiet_library
from aigc_compress.passes.borders import Borders, with_borders
from aigc_compress.task import Feeds

__all__ = ["SOURCE", "TARGET", "bordered_model", "integer_model", "single_model"]

SOURCE, TARGET = "x", "y"
IR_VERSION = 8
INTEGER_OPERATORS = (
    "Add",
    "Concat",
    "Conv",
    "DepthToSpace",
    "MatMul",
    "Reshape",
    "Slice",
    "Transpose",
)


def single_model(
    nodes: Sequence[NodeProto],
    constants: Sequence[TensorProto],
    shape: Sequence[int | str],
    *,
    opset: int,
) -> ModelProto:
    """Return the model of nodes that make TARGET of SOURCE, both float32.

    Args:
        nodes: in topological order.
        constants: the initializers that they read.
        shape: of SOURCE; a string is a dynamic axis.
        opset: of the nodes.
    """
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(SOURCE, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(TARGET, TensorProto.FLOAT, [None] * len(shape))],
        constants,
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


def integer_model(model: ModelProto, feeds: Feeds) -> ModelProto:
    """Return the model on integers, with Q/DQ at both ends.

    Activations are uint8 with the ranges that `feeds` give, weights int8, one scale per channel.
    Whatever ONNX Runtime's tool raises goes through.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, quiet_library():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(
            str(source),
            str(target),
            _Once(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(INTEGER_OPERATORS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


def bordered_model(model: ModelProto, feeds: Feeds) -> ModelProto:
    """Return the model with its layers on integers, as OpenVINO wants them (see `borders`).

    Whatever ONNX Runtime's tool raises goes through.
    """
    borders = Borders(("Conv", "MatMul"), symmetric=False)
    return with_borders(model, borders, Context((feeds,), (feeds,)))


class _Once(CalibrationDataReader):  # type: ignore[misc]
    """Hands one set of feeds to ONNX Runtime's tool."""

    def __init__(self, feeds: Feeds) -> None:
        self._left = [dict(feeds)]

    def get_next(self) -> Any:
        return self._left.pop() if self._left else None
