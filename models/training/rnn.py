"""Train the reference RNN: next-character cross entropy, truncated back-propagation."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's own name

from aigc_compress.artifact import Artifact
from aigc_compress.checkpoint import Checkpoint
from aigc_compress.engines.torch import TorchRunner
from aigc_compress.models import data
from aigc_compress.models.rnn import CharacterModel, RnnConfig
from aigc_compress.models.tasks import make_task
from aigc_compress.models.tasks.rnn import WriteText
from aigc_compress.models.text import Writer
from aigc_compress.storage import write_bytes
from aigc_compress.task import Quality

from .base import Trainer, TrainingConfig, average_into, one_cycle
from .distillation import Distillation
from .reading import Reader

__all__ = ["RnnShape", "RnnTrainer", "RnnTraining"]


class RnnShape(BaseModel):
    """The network's shape; its alphabet comes from the text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: Literal["lstm", "gru"] = Field(default="lstm", description="kind of recurrent cell")
    layers: int = Field(default=2, ge=1, description="number of recurrent layers")
    hidden: int = Field(default=512, ge=1, description="units of a layer")
    embedding: int = Field(default=128, ge=1, description="length of a character's embedding")


class RnnDistillation(Distillation):
    """How a language model follows its teacher."""

    weight: float = Field(
        default=0.7, ge=0, le=1, description="share of the loss that comes from the teacher"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="by which both models' logits are divided"
    )
    written: float = Field(
        default=0.0,
        ge=0,
        le=20,
        description="text that the teacher writes to learn from, as a share of the real one",
    )


class RnnTraining(TrainingConfig):
    """Settings of the RNN's training."""

    model: RnnShape = RnnShape()
    steps: int = Field(
        default=2280, ge=1, description="optimizer steps; 456 read every character once"
    )
    batch_size: int = Field(default=64, ge=2, description="streams of text that a step reads")
    window: int = Field(default=128, ge=2, description="characters of each stream in a step")
    learning_rate: float = Field(
        default=4e-3, gt=0, description="peak of the one-cycle schedule (Adam)"
    )
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="decay of the averaged weights")
    validate_every: int = Field(default=456, ge=1, description="steps between validations")
    validation_samples: int = Field(
        default=50_000, ge=100, description="characters of each validation"
    )
    distill: RnnDistillation = RnnDistillation()


class RnnTrainer(Trainer):
    """Next-character prediction on the King James text; a teacher reads along."""

    name = "rnn"
    data_name = "King James text"
    config: RnnTraining

    def __init__(
        self,
        config: RnnTraining,
        *,
        device: torch.device,
        start: Artifact | None = None,
        teacher: Artifact | None = None,
    ) -> None:
        super().__init__(config, device=device, start=start, teacher=teacher)
        alphabet = "".join(sorted(set(data.embedded_text())))
        self.shape = RnnConfig(alphabet=alphabet, **config.model.model_dump())
        sizes = start.spec.sizes if start and start.spec else {}
        task = make_task("rnn", self.shape.model_dump(), sizes)
        assert isinstance(task, WriteText)
        self.task = task
        tokens = torch.from_numpy(self.task.encode(data.text("train")))
        size = config.batch_size
        self.streams = tokens[: len(tokens) // size * size].view(size, -1)
        self.network = self.begun(lambda: CharacterModel(self.shape))
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.hidden = self.network.initial_state(config.batch_size)
        self.modules = {"network": self.network, "average": self.average}
        trained = [*self.network.parameters()]
        if self.teacher is not None:
            hints = config.distill.features > 0
            self.reader = Reader(
                self.teacher,
                self.streams,
                piece=config.window,
                written=int(config.distill.written * self.streams.shape[1]),
                keeps_features=hints,
                seed=config.seed,
            )
            self.streams = self.reader.streams
            trained += self.adapted(self.network, config.distill)
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate)
        self.optimizers = {"network": self.optimizer}

    def step(self, index: int) -> Mapping[str, Tensor]:
        """Read the next window of every stream; the state of the last window is kept."""
        config = self.config
        start = self._start(index)
        stop = start + config.window
        told = None
        if self.teacher is not None:
            told = self.reader.after(start, stop, self.mixed_precision())
        window = self.streams[:, start : stop + 1].to(self.device)
        if index % self._per_epoch == 0:
            self.hidden = self.network.initial_state(config.batch_size)
        factor = one_cycle(index, config.steps, warm_up=0.1)
        self.optimizer.param_groups[0]["lr"] = config.learning_rate * factor
        with self.mixed_precision():
            features, state = self.network.features(window[:, :-1], *self.hidden)
            logits = self.network.head(features).float()
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        bits = loss.detach() / math.log(2)
        if told is not None:
            soft, wanted = told
            loss = self.distilled(loss, logits, soft, features.float(), wanted)
        self.hidden = tuple(each.detach().float() for each in state)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        self.optimizer.step()
        average_into(self.average, self.network, decay=config.ema_decay, index=index)
        return {"bits_per_character": bits}

    def loss_of(self, module: Any, index: int) -> Tensor:
        """Return the cross entropy of a module on a window of the text, from a zero state."""
        start = self._start(index)
        window = self.streams[:, start : start + self.config.window + 1].to(self.device)
        logits, *_ = module(window[:, :-1], *module.initial_state(len(window)))
        return F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())

    def evaluate(self, split: Literal["validation", "test"], samples: int | None) -> Quality:
        """Measure the averaged network's bits per character."""
        return self.task.evaluate(TorchRunner(self.average), split=split, samples=samples)

    def preview(self, stem: Path) -> Path:
        """Write a text of 400 characters."""
        writer = Writer(TorchRunner(self.average), self.task)
        text = "".join(writer.write("In the beginning", 400, temperature=0.7, seed=0))
        path = stem.with_suffix(".txt")
        write_bytes(path, ("In the beginning" + text + "\n").encode())
        return path

    def checkpoint(self) -> Checkpoint:
        """Return the averaged network."""
        return self.finished(self.average, self.shape)

    def state(self) -> dict[str, Any]:
        """Add the recurrent state to what every trainer keeps."""
        return {**super().state(), "hidden": self.hidden}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        super().load_state(state)
        self.hidden = tuple(each.to(self.device) for each in state["hidden"])

    def _start(self, index: int) -> int:
        """Return the place in the streams where the window of a step begins.

        Every epoch cuts the streams at another offset, so windows differ between epochs.
        """
        width = self.config.window
        epoch, position = divmod(index, self._per_epoch)
        return (epoch * 37) % width + position * width

    @property
    def _per_epoch(self) -> int:
        return (self.streams.shape[1] - 1) // self.config.window - 1
