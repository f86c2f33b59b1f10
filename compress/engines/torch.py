"""Run torch artifacts eagerly."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from aigc_compress.task import Feeds

__all__ = ["TorchRunner"]


class TorchRunner:
    """Feed numpy arrays to a module whose `input_names` and `output_names` tell its face."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.device = next(module.parameters()).device

    @torch.inference_mode()
    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        names: tuple[str, ...] = self.module.input_names  # type: ignore[assignment]
        inputs = [torch.from_numpy(np.asarray(feeds[name])).to(self.device) for name in names]
        outputs = self.module(*inputs)
        listed = outputs if isinstance(outputs, tuple) else (outputs,)
        output_names: tuple[str, ...] = self.module.output_names  # type: ignore[assignment]
        return {
            name: value.cpu().numpy() for name, value in zip(output_names, listed, strict=True)
        }
