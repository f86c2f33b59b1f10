"""Train a user's own model by the batches and the loss of its task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's own name

from aigc_compress.artifact import Artifact
from aigc_compress.checkpoint import Checkpoint
from aigc_compress.engines.torch import TorchRunner, flat_tensors
from aigc_compress.storage import write_bytes
from aigc_compress.task import Quality, Trainable

from .base import Trainer, TrainingConfig, average_into, one_cycle
from .distillation import Distillation, softened_loss

__all__ = ["OwnDistillation", "OwnTrainer", "OwnTraining"]


class OwnDistillation(Distillation):
    """How a model follows its teacher."""

    outputs: Literal["logits", "values"] = Field(
        default="logits",
        description="logits: softened distributions; values: squared distance, as a share of the"
        " teacher's mean square",
    )


class OwnTraining(TrainingConfig):
    """Settings of the training of a user's model (AdamW, one cycle)."""

    learning_rate: float = Field(default=1e-3, gt=0, description="peak of the one-cycle schedule")
    weight_decay: float = Field(default=1e-2, ge=0, description="of AdamW")
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="decay of the averaged weights")
    distill: OwnDistillation = OwnDistillation()


class OwnTrainer(Trainer):
    """Steps of a task that has `batch`, `inputs` and `loss`."""

    name = data_name = "your own"
    config: OwnTraining

    def __init__(
        self,
        task: Trainable,
        config: OwnTraining,
        *,
        device: torch.device,
        start: Artifact,
        teacher: Artifact | None = None,
    ) -> None:
        super().__init__(config, device=device, start=start, teacher=teacher)
        self.task = task
        self.network = self.begun(lambda: start.payload)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.modules = {"network": self.network, "average": self.average}
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.optimizers = {"network": self.optimizer}

    def step(self, index: int) -> Mapping[str, Tensor]:
        """Make one step on the task's batch of this index."""
        config = self.config
        batch = self.task.batch(index, size=config.batch_size, seed=config.seed)
        inputs = [each.to(self.device) for each in self.task.inputs(batch)]
        factor = one_cycle(index, config.steps, warm_up=0.1)
        self.optimizer.param_groups[0]["lr"] = config.learning_rate * factor
        with self.mixed_precision():
            outputs = self.network(*inputs)
            loss = self.task.loss(outputs, batch)
        if self.teacher is not None:
            with torch.no_grad(), self.mixed_precision():
                wanted = self.teacher(*inputs)
            weight = config.distill.weight
            loss = (1 - weight) * loss + weight * self._follows(outputs, wanted)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        average_into(self.average, self.network, decay=config.ema_decay, index=index)
        return {"loss": loss.detach()}

    def loss_of(self, module: Any, index: int) -> Tensor:
        """Return the task's loss of a module on the training batch of an index."""
        batch = self.task.batch(index, size=self.config.batch_size, seed=self.config.seed)
        loss: Tensor = self.task.loss(module(*self.task.inputs(batch)), batch)
        return loss

    def evaluate(self, split: Literal["validation", "test"], samples: int | None) -> Quality:
        """Measure the averaged model by its task."""
        return self.task.evaluate(
            TorchRunner(self.average), split=split, samples=samples, with_details=False
        )

    def preview(self, stem: Path) -> Path:
        """Write what the task shows of the model, if it shows something."""
        exhibit = self.task.exhibit(TorchRunner(self.average))
        path = stem.with_suffix(".txt")
        write_bytes(path, b"" if exhibit is None else exhibit.data.encode())
        return path

    def checkpoint(self) -> Checkpoint:
        """Return the averaged model."""
        assert self.start is not None
        assert self.start.spec is not None
        made = self.finished(self.average, self.config)
        return replace(made, model=self.start.spec.name, task=self.start.task)

    def _follows(self, outputs: Any, wanted: Any) -> Tensor:
        """Return the distance of the floating-point outputs from the teacher's."""
        distill = self.config.distill
        pairs = [
            (a.float(), b.float())
            for a, b in zip(flat_tensors(outputs), flat_tensors(wanted), strict=True)
            if a.is_floating_point()
        ]
        if distill.outputs == "logits":
            losses = [softened_loss(a, b, temperature=distill.temperature) for a, b in pairs]
        else:
            losses = [F.mse_loss(a, b) / b.square().mean().clamp_min(1e-12) for a, b in pairs]
        return torch.stack(losses).mean()
