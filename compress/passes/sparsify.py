"""Set single weights to zero: unstructured, or two of every four as NVIDIA's tensor cores run them.

The least magnitudes go (Han et al. 2015, "Learning both Weights and Connections"). The shapes stay,
so an engine gains only where it has sparse kernels: TensorRT runs the 2:4 pattern on GPUs since
Ampere (Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks"). ONNX Runtime and OpenVINO
on a CPU run zeros like any number; there the packed file is what shrinks. Trainings that go on with
such a model leave its zeros alone.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from aigc_compress.artifact import Artifact, Step
from aigc_compress.errors import PassError

from .base import Context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

__all__ = ["SparsifyConfig", "SparsifyPass", "two_of_four"]

Pattern = Literal["2:4", "unstructured"]
GROUP, KEPT = 4, 2
FASTER = {
    "2:4": "in TensorRT on Ampere and later GPUs; elsewhere the packed file alone is smaller",
    "unstructured": "in no engine; the packed file alone is smaller",
}


class SparsifyConfig(BaseModel):
    """Settings of sparsity in single weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pattern: Pattern = Field(default="2:4", description="which weights may go")
    ratio: float = Field(default=0.5, gt=0, lt=1, description="share of zeros, if unstructured")
    least: int = Field(default=1024, ge=1, description="elements that a weight has at least")

    @model_validator(mode="after")
    def _check_ratio(self) -> SparsifyConfig:
        if self.pattern == "2:4" and self.ratio != 0.5:
            raise ValueError("2:4 is a ratio of 0.5; leave ratio out")
        return self


class SparsifyPass:
    """Set the smallest weights of every large layer to zero.

    The step's numbers tell the share of zeros per weight, which weights stay dense and why, and who
    gains from it.
    """

    name = "sparsify"
    config = SparsifyConfig

    def run(self, artifact: Artifact, config: SparsifyConfig, context: Context) -> Artifact:
        """Return the module with zeros.

        Raises:
            PassError: no weight can be made sparse.
        """
        import torch

        module = copy.deepcopy(artifact.payload)
        zeros: dict[str, float] = {}
        dense: dict[str, str] = {}
        with torch.no_grad():
            for part, name, weight in _weights(module):
                why = _why_dense(part, weight, config)
                if why is not None:
                    dense[name] = why
                    continue
                is_paired = config.pattern == "2:4"
                made = two_of_four(weight) if is_paired else _without_least(weight, config.ratio)
                weight.copy_(made)
                zeros[name] = float((weight == 0).float().mean())
        if not zeros:
            raise PassError(
                "No weight can be made sparse: "
                + "; ".join(f"{name}: {why}" for name, why in [*dense.items()][:3])
            )
        numbers = {"zeros": zeros, "dense": dense, "faster": FASTER[config.pattern]}
        step = Step(self.name, config.model_dump(mode="json"), context.seed, numbers)
        return artifact.then(module, step, stage="torch")


def _weights(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield matrices and kernels with the part that they belong to and their full name."""
    for path, part in module.named_modules():
        for name, weight in part.named_parameters(recurse=False):
            if weight.ndim > 1:
                yield part, f"{path}.{name}" if path else name, weight


def _why_dense(part: nn.Module, weight: Tensor, config: SparsifyConfig) -> str | None:
    kind = type(part).__name__
    if weight.numel() < config.least:
        return f"fewer than {config.least} elements"
    if config.pattern == "unstructured":
        return None
    if "Embedding" in kind or "ConvTranspose" in kind:
        return f"{kind} has no sparse kernels"
    if weight.shape[1] % GROUP:
        return f"{weight.shape[1]} inputs are no multiple of {GROUP}"
    return None


def two_of_four(weight: Tensor) -> Tensor:
    """Return a weight whose smaller two of every four inputs are zero.

    Shapes: (outputs, inputs, ...) with inputs a multiple of four -> the same. The four lie along
    the inputs, at one place of the kernel, as TensorRT wants them.
    """
    rows = weight.movedim(1, -1)
    fours = rows.reshape(*rows.shape[:-1], -1, GROUP)
    smallest = fours.abs().argsort(-1)[..., : GROUP - KEPT]
    return fours.scatter(-1, smallest, 0.0).reshape(rows.shape).movedim(-1, 1)


def _without_least(weight: Tensor, ratio: float) -> Tensor:
    count = int(weight.numel() * ratio)
    flat = weight.flatten().clone()
    flat[flat.abs().argsort()[:count]] = 0.0
    return flat.view_as(weight)
