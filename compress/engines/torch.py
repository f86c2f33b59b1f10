"""Run torch artifacts eagerly on the CPU."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.artifact import Artifact
from aigc_compress.errors import PassError, first_line
from aigc_compress.task import Feeds

from .base import Availability

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["TorchEngine", "TorchRunner", "flat_tensors"]


def flat_tensors(outputs: Any) -> list[Tensor]:
    """Return the tensors in what a module returned: one, or any nesting of them."""
    import torch

    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    elif not isinstance(outputs, (list, tuple)):
        return []
    return [tensor for each in outputs for tensor in flat_tensors(each)]


class TorchRunner:
    """Feed numpy arrays to a module whose `input_names` and `output_names` tell its face."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        first = next(itertools.chain(module.parameters(), module.buffers()), None)
        self.device = "cpu" if first is None else first.device

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        import torch

        names: tuple[str, ...] = self.module.input_names  # type: ignore[assignment]
        output_names: tuple[str, ...] = self.module.output_names  # type: ignore[assignment]
        with torch.inference_mode():
            inputs = [torch.from_numpy(np.asarray(feeds[name])).to(self.device) for name in names]
            outputs = self.module(*inputs)
        listed = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: value.cpu().numpy() for name, value in zip(output_names, listed, strict=True)}


class TorchSession(TorchRunner):
    """A runner whose failures are ours, as those of other engines; feeds are not checked here."""

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        try:
            return super().run(feeds)
        except Exception as error:  # a module's own code raises whatever it likes
            raise PassError(f"torch does not run this module: {first_line(error)}") from error


class TorchEngine:
    """torch in eager mode."""

    name = "torch"
    stage = "torch"

    def availability(self) -> Availability:
        """Tell whether torch is installed, without importing it."""
        if importlib.util.find_spec("torch") is None:
            install = "pip install 'aigc-compress[compress]'"
            return Availability(False, "torch is not installed", install)
        return Availability(True, "torch, eager, CPU")

    def load(self, artifact: Artifact, *, threads: int) -> TorchSession:
        """Wrap the module; `threads` holds for the whole process."""
        import torch

        torch.set_num_threads(threads)
        return TorchSession(artifact.payload)
