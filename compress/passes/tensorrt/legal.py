"""The `tensorrt` pass: a graph that TensorRT builds, in float32, float16, or with 8-bit layers.

Engines are strongly typed: a precision is what the graph says. int8 is written as symmetric
QuantizeLinear and DequantizeLinear before layers with weights (see `borders`), and FP8 is that with
other 8 bits (see `float8`).
"""

from __future__ import annotations

from typing import Literal, get_args

from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step
from aigc_compress.errors import PassError

from ..agreement import sqnr_db
from ..base import Context, quiet_library
from ..borders import Borders, with_borders
from ..graphs import sorted_nodes
from ..operators import count_operators, with_node_names
from ..quantize.config import RangeMethod
from .float8 import in_float8
from .linter import lint

__all__ = ["LAYERS", "PRECISIONS", "QUANTIZED", "Precision", "TensorRtConfig", "TensorRtPass"]

Precision = Literal["fp32", "fp16", "fp8", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
QUANTIZED: tuple[Precision, ...] = ("fp8", "int8")
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class TensorRtConfig(BaseModel):
    """Settings of a graph for TensorRT."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision = Field(default="fp32", description="what the layers compute in")
    ranges: RangeMethod = Field(
        default="minmax", description="where the range of an activation ends, for int8 and fp8"
    )
    keep_float: tuple[str, ...] = Field(
        default=(), description="names of nodes that stay float32, as `fold` names them"
    )

    @property
    def is_quantized(self) -> bool:
        """Whether layers compute in 8 bits, which needs calibration."""
        return self.precision in QUANTIZED


class TensorRtPass:
    """Make a graph that TensorRT takes; the step's numbers tell what computes in what.

    `sqnr_db` compares with the graph before, both in ONNX Runtime on the CPU, on the check feeds.
    """

    name = "tensorrt"
    config = TensorRtConfig

    def run(self, artifact: Artifact, config: TensorRtConfig, context: Context) -> Artifact:
        """Return the graph.

        Raises:
            PassError: TensorRT would refuse the graph, or nothing in it has an 8-bit form.
        """
        model: ModelProto = artifact.payload
        if config.precision == "fp16":
            model = sorted_nodes(_halved(with_node_names(model), config))
        elif config.is_quantized:
            model = _in_8_bits(with_node_names(model), config, context)
        refused = lint(model)
        if refused:
            told = "; ".join(f"{each.node} ({each.op}): {each.reason}" for each in refused[:3])
            more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
            raise PassError(f"TensorRT would refuse this graph: {told}{more}.")
        numbers = {
            "operators": count_operators(
                model, kind=config.precision if config.is_quantized else "int8"
            ),
            "sqnr_db": sqnr_db(artifact, model, context),
        }
        step = Step(self.name, config.model_dump(mode="json"), context.seed, numbers)
        return artifact.then(model, step, stage="onnx")


def _in_8_bits(model: ModelProto, config: TensorRtConfig, context: Context) -> ModelProto:
    borders = Borders(LAYERS, symmetric=True, ranges=config.ranges, keep_float=config.keep_float)
    integer = with_borders(model, borders, context)
    return in_float8(integer, model) if config.precision == "fp8" else integer


def _halved(model: ModelProto, config: TensorRtConfig) -> ModelProto:
    """Return the graph in float16; its inputs and outputs stay as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = ModelProto()
    copy.CopyFrom(model)
    with quiet_library():
        halved: ModelProto = convert_float_to_float16(
            copy,
            keep_io_types=True,
            op_block_list=[],  # what ONNX Runtime lacks in float16, TensorRT has
            node_block_list=list(config.keep_float),
        )
    return halved
