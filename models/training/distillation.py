"""What a student learns from a teacher: its settings and losses."""

from __future__ import annotations

import copy

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

__all__ = ["Distillation", "frozen", "hint_loss", "softened_loss"]


class Distillation(BaseModel):
    """How a classifier or language model follows its teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(
        default=0.9, ge=0, le=1, description="share of the loss that comes from the teacher"
    )
    temperature: float = Field(
        default=4.0, gt=0, description="by which both models' logits are divided"
    )
    features: float = Field(
        default=0.0, ge=0, description="weight of the distance between hidden features"
    )


def softened_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)) (Hinton et al. 2015, section 2).

    Shapes: logits (..., classes) -> scalar, the mean over all other axes.
    """
    wanted = F.log_softmax(teacher.detach() / temperature, -1)
    found = F.log_softmax(student / temperature, -1)
    divergence = (wanted.exp() * (wanted - found)).sum(-1)
    return temperature**2 * divergence.mean()


def hint_loss(adaptor: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared distance of features, as a share of the teacher's mean square.

    The student's, (..., width), are mapped to the teacher's width first (Romero et al. 2015).
    """
    wanted = teacher.detach()
    return F.mse_loss(adaptor(student), wanted) / wanted.square().mean().clamp_min(1e-12)


def frozen(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy that is never trained."""
    return copy.deepcopy(module).to(device).requires_grad_(False).eval()
