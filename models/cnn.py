"""A residual network (He et al. 2015, basic blocks) for 28x28 grey images."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

__all__ = ["CnnConfig", "ResidualNetwork"]


class CnnConfig(BaseModel):
    """Widths and depths of the network's stages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[int, ...] = Field(default=(32, 64, 128), description="channels of each stage")
    blocks: tuple[int, ...] = Field(default=(1, 2, 3), description="residual blocks of each stage")
    classes: int = Field(default=10, ge=2, description="number of classes")

    @model_validator(mode="after")
    def _check_stages(self) -> CnnConfig:
        if len(self.widths) != len(self.blocks) or not self.widths:
            raise ValueError("widths and blocks must name the same number of stages, at least one")
        if min(self.widths + self.blocks) < 1:
            raise ValueError("widths and blocks must be at least 1")
        return self


class ResidualNetwork(nn.Module):
    """Classify images; every stage but the first halves the resolution.

    Shapes: image float32 (N, 1, 28, 28) in [-1, 1] -> logits float32 (N, classes).
    """

    input_names = ("image",)
    output_names = ("logits",)

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        self.config = config
        width = config.widths[0]
        self.stem = _conv_bn(1, width, kernel=3, stride=1)
        stages = []
        for index, (out, depth) in enumerate(zip(config.widths, config.blocks, strict=True)):
            strides = [1 if index == 0 else 2] + [1] * (depth - 1)
            for stride in strides:
                stages.append(ResidualBlock(width, out, stride))
                width = out
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width, config.classes)

    def features(self, image: Tensor) -> Tensor:
        """Return the penultimate features, float32 (N, widths[-1])."""
        return self.stages(torch.relu(self.stem(image))).mean((2, 3))  # type: ignore[no-any-return]

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (N, classes)."""
        return self.head(self.features(image))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_bn(width, out, kernel=3, stride=stride)
        self.second = _conv_bn(out, out, kernel=3, stride=1)
        same = width == out and stride == 1
        self.shortcut = nn.Identity() if same else _conv_bn(width, out, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, H, W) to (N, out, H / stride, W / stride)."""
        branch = self.second(torch.relu(self.first(x)))
        return torch.relu(branch + self.shortcut(x))


def _conv_bn(width: int, out: int, *, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(width, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))
