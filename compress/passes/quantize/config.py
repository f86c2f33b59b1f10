"""Settings of the quantization: the scheme, where ranges come from, what stays float."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.machine import machine_scheme

__all__ = ["Mode", "QuantizeConfig", "RangeMethod"]

Mode = Literal["auto", "static", "dynamic"]
RangeMethod = Literal[
    "minmax",
    "percentile",
    "percentile-99.9",
    "percentile-99.99",
    "percentile-99.999",
    "entropy",
    "mse",
    "auto",
]


def _reduces_range() -> bool:
    return machine_scheme().reduces_range


class QuantizeConfig(BaseModel):
    """Settings of the quantization."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = Field(
        default="auto", description="auto: static for Conv and Gemm, dynamic for LSTM, GRU, MatMul"
    )
    activations: Literal["uint8", "int8"] = Field(
        default="uint8", description="dtype of activations; uint8 is asymmetric, int8 symmetric"
    )
    weights: Literal["int8", "uint8"] = Field(
        default="int8", description="dtype of weights; int8 is symmetric, uint8 asymmetric"
    )
    per_channel: bool = Field(default=True, description="one scale per output channel of a weight")
    reduce_range: bool = Field(
        default_factory=_reduces_range,
        description="weights so small that no two products of u8 x s8 leave int16, where x86"
        " without VNNI saturates; as this machine needs it, if not said",
    )
    ranges: RangeMethod = Field(
        default="minmax",
        description="where the range of an activation ends; auto: the least squared error of each",
    )
    keep_float: tuple[str, ...] = Field(
        default=(), description="names of nodes that stay float, as `fold` names them"
    )
    only: tuple[str, ...] | None = Field(
        default=None,
        description="names of the nodes that static mode makes integer; none: all that can be",
    )
    equalize: bool = Field(
        default=False,
        description="balance the weights of layers that follow each other; helps most where"
        " weights have one scale per tensor",
    )
    smooth: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="alpha of SmoothQuant: the share of the channels' difference in size that goes"
        " from activations to weights; 0.5 is usual, none: nothing goes",
    )
    rounding: Literal["nearest", "adaptive"] = Field(
        default="nearest",
        description="adaptive: weights go up or down so that a layer's outputs come closest",
    )
    correct_bias: bool = Field(
        default=False, description="shift biases by the mean error of their channel"
    )
