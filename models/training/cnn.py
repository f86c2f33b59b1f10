"""Train the reference CNN: SGD with one cycle, crops, flips, erased patches, averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's own name

from aigc_compress.artifact import Artifact
from aigc_compress.checkpoint import Checkpoint
from aigc_compress.engines.torch import TorchRunner
from aigc_compress.errors import UsageError
from aigc_compress.models import data
from aigc_compress.models.cnn import CnnConfig, ResidualNetwork
from aigc_compress.models.tasks import make_task
from aigc_compress.task import Quality, Task

from .base import Trainer, TrainingConfig, average_into, epoch_order, one_cycle, seeded
from .distillation import Distillation, softened_loss
from .pictures import save_grid

__all__ = ["CnnTrainer", "CnnTraining"]


class CnnTraining(TrainingConfig):
    """Settings of the CNN's training."""

    model: CnnConfig = CnnConfig()
    steps: int = Field(default=5160, ge=1, description="optimizer steps; 429 see every image once")
    batch_size: int = Field(default=128, ge=2, description="images of a step")
    learning_rate: float = Field(default=0.2, gt=0, description="peak of the one-cycle schedule")
    weight_decay: float = Field(default=5e-4, ge=0, description="L2 factor, on all weights")
    label_smoothing: float = Field(
        default=0.05, ge=0, lt=1, description="share of the target spread out"
    )
    crop_padding: int = Field(default=2, ge=0, description="pixels that a random crop may shift")
    erased_side: int = Field(
        default=8, ge=0, description="side in pixels of the patch erased to grey"
    )
    validate_every: int = Field(default=860, ge=1, description="steps between validations")
    distill: Distillation = Distillation()
    mutual: float = Field(
        default=0.0,
        ge=0,
        description="weight with which a second network, of other first weights, and this one teach"
        " each other; 0: there is none",
    )


class CnnTrainer(Trainer):
    """Cross entropy on Fashion-MNIST; with a teacher, softened logits and features as well."""

    name = "cnn"
    data_name = "Fashion-MNIST"
    config: CnnTraining

    def __init__(
        self,
        config: CnnTraining,
        *,
        device: torch.device,
        images: data.Images,
        start: Artifact | None = None,
        teacher: Artifact | None = None,
    ) -> None:
        super().__init__(config, device=device, start=start, teacher=teacher)
        self.pixels = torch.from_numpy(data.to_unit_range(images.pixels))
        self.labels = torch.from_numpy(images.labels).long()
        self.network = self.begun(lambda: ResidualNetwork(config.model))
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.modules = {"network": self.network, "average": self.average}
        trained = [*self.network.parameters()]
        if self.teacher is not None:
            trained += self.adapted(self.network, config.distill)
        if config.mutual:
            if start is not None:
                raise UsageError("mutual: two new networks teach each other; leave the start out.")
            with seeded(config.seed, 2):
                self.modules["peer"] = ResidualNetwork(config.model).to(device)
            trained += self.modules["peer"].parameters()
        self.optimizer = torch.optim.SGD(
            trained,
            lr=config.learning_rate,
            momentum=0.9,
            weight_decay=config.weight_decay,
            nesterov=True,
        )
        self.optimizers = {"network": self.optimizer}

    def step(self, index: int) -> Mapping[str, Tensor]:
        """Make one step on one augmented batch."""
        config = self.config
        images, labels = self._batch(index)
        factor = one_cycle(index, config.steps, warm_up=0.25)
        self.optimizer.param_groups[0]["lr"] = config.learning_rate * factor
        with self.mixed_precision():
            features = self.network.features(images)
            logits = self.network.head(features)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        if self.teacher is not None:
            with torch.no_grad(), self.mixed_precision():
                wanted = self.teacher.features(images)
                soft = self.teacher.head(wanted).float()
            loss = self.distilled(loss, logits.float(), soft, features.float(), wanted.float())
        if config.mutual:
            loss = loss + self._with_peer(images, labels, logits.float())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        average_into(self.average, self.network, decay=config.ema_decay, index=index)
        return {"loss": loss.detach()}

    def _with_peer(self, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """Return the peer's own loss, and how far each is from what the other says.

        Deep Mutual Learning (Zhang et al. 2018, equations 5 and 6), both networks in one step.
        """
        with self.mixed_precision():
            other = self.modules["peer"](images).float()
        own = F.cross_entropy(other, labels, label_smoothing=self.config.label_smoothing)
        apart = [
            softened_loss(*pair, temperature=1.0) for pair in ((logits, other), (other, logits))
        ]
        return own + self.config.mutual * (apart[0] + apart[1])

    def loss_of(self, module: Any, index: int) -> Tensor:
        """Return the cross entropy of a module on the training batch of an index."""
        images, labels = self._batch(index)
        return F.cross_entropy(module(images), labels)

    def evaluate(self, split: Literal["validation", "test"], samples: int | None) -> Quality:
        """Measure the averaged network's top-1 accuracy."""
        return self._task.evaluate(TorchRunner(self.average), split=split, samples=samples)

    def preview(self, stem: Path) -> Path:
        """Write a grid of the batch that the network sees, augmentation included."""
        with seeded(self.config.seed, 0):
            images, _ = self._batch(0)
        return save_grid(images[:64].cpu().numpy(), stem.with_suffix(".png"))

    def checkpoint(self) -> Checkpoint:
        """Return the averaged network."""
        return self.finished(self.average, self.config.model)

    @property
    def _task(self) -> Task:
        return make_task("cnn", self.config.model.model_dump())

    def _batch(self, index: int) -> tuple[Tensor, Tensor]:
        size = self.config.batch_size
        per_epoch = len(self.labels) // size
        epoch, position = divmod(index, per_epoch)
        order = epoch_order(len(self.labels), seed=self.config.seed, epoch=epoch)
        picks = order[position * size : (position + 1) * size]
        images = _augment(
            self.pixels[picks], padding=self.config.crop_padding, side=self.config.erased_side
        )
        return images.to(self.device), self.labels[picks].to(self.device)


def _augment(images: Tensor, *, padding: int, side: int) -> Tensor:
    """Shift, mirror and erase a patch, each image on its own: (N, 1, H, W) -> the same."""
    count, _, height, width = images.shape
    shift = torch.randint(0, 2 * padding + 1, (2, count, 1, 1))
    rows = torch.arange(height)[None, :, None] + shift[0]
    columns = torch.arange(width)[None, None, :] + shift[1]
    mirrored = torch.rand(count, 1, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(2), columns)
    padded = F.pad(images, (padding,) * 4, value=-1.0)
    moved = padded[torch.arange(count)[:, None, None], 0, rows, columns]
    corner = torch.randint(0, height - side + 1, (2, count, 1, 1))
    inside_rows = torch.arange(height)[None, :, None] - corner[0]
    inside_columns = torch.arange(width)[None, None, :] - corner[1]
    erased = (
        (inside_rows >= 0) & (inside_rows < side) & (inside_columns >= 0) & (inside_columns < side)
    )
    return moved.masked_fill(erased, 0.0)[:, None]
