"""Settings of the tuned quantization: trials, ranges, what may be lost, what may stay float."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AutotuneConfig", "Ranges"]

Ranges = Literal["minmax", "histogram"]


class AutotuneConfig(BaseModel):
    """Settings of the tuned quantization."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opset: int = Field(default=20, ge=17, le=23, description="ONNX operator set of the graph")
    dynamic_axes: dict[str, dict[int, str]] = Field(
        default_factory=dict, description="names of the axes that stay dynamic, by input and axis"
    )
    most_trials: int = Field(default=8, ge=1, description="most quantized models that are scored")
    ranges: tuple[Ranges, ...] = Field(
        default=("minmax", "histogram"),
        min_length=1,
        description="where ranges of activations end, in the order tried: at the extremes, or where"
        " a histogram's squared error is least",
    )
    least_sqnr_db: float = Field(
        default=20.0,
        ge=-200,
        le=200,
        description="SQNR against the float outputs at which the search ends, in dB",
    )
    tolerable_loss: float = Field(
        default=0.0,
        ge=0,
        description="loss at which it ends where a score is handed in, in that score's unit",
    )
    may_stay_float: tuple[str, ...] | None = Field(
        default=None, description="names of the modules that may fall back to float; none: any"
    )
    least_agreement_db: float = Field(
        default=30.0,
        ge=0,
        le=200,
        description="SQNR that the ONNX graph must reach against the quantized torch program",
    )
