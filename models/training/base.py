"""What every reference's training shares: its configuration and the parts the loop drives."""

from __future__ import annotations

import copy
import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from aigc_compress.artifact import Artifact
from aigc_compress.checkpoint import Checkpoint
from aigc_compress.errors import UsageError
from aigc_compress.machine import has_fast_bf16, machine_scheme
from aigc_compress.passes.qat import add_fake_quant, without_fake_quant
from aigc_compress.task import Quality

from .distillation import Distillation, frozen, hint_loss, softened_loss

__all__ = [
    "Trainer",
    "TrainingConfig",
    "average_into",
    "epoch_order",
    "mixed_seed",
    "one_cycle",
    "seeded",
]

Precision = Literal["auto", "fp32", "bf16"]


class TrainingConfig(BaseModel):
    """Settings that every training has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=1000, ge=1, description="optimizer steps")
    batch_size: int = Field(default=64, ge=2, description="samples of a step")
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="seed of weights, data order and noise"
    )
    precision: Precision = Field(
        default="auto", description="auto: bf16 where the device is fast at it"
    )
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="decay of the averaged weights")
    validate_every: int = Field(default=1000, ge=1, description="steps between validations")
    validation_samples: int = Field(default=2000, ge=100, description="samples of each validation")
    qat: bool = Field(
        default=False,
        description="round as INT8 would while training (not LSTM and GRU)",
    )
    freeze: tuple[str, ...] = Field(
        default=(), description="parameters that stand still, by name; * stands for anything"
    )
    freeze_steps: int | None = Field(
        default=None, ge=1, description="steps until they move again; none: they never do"
    )

    @model_validator(mode="after")
    def _check_freeze(self) -> TrainingConfig:
        if self.freeze_steps is not None and not self.freeze:
            raise ValueError("freeze_steps has no effect without freeze")
        return self


class Trainer(ABC):
    """One reference's training: it owns modules, optimizers and data; the loop owns the steps.

    All randomness of step i comes from (seed, i), so a resumed run repeats the same numbers.
    """

    name: ClassVar[str]
    data_name: ClassVar[str]

    def __init__(
        self,
        config: TrainingConfig,
        *,
        device: torch.device,
        start: Artifact | None = None,
        teacher: Artifact | None = None,
    ) -> None:
        """Prepare a training.

        Args:
            config: settings.
            device: where it runs.
            start: the model that it begins with, pruned or not; None: a new one.
            teacher: the model that it learns from; None: from the data alone.
        """
        self.config = config
        self.device = device
        self.start = start
        self.teacher: Any = None if teacher is None else frozen(teacher.payload, device)
        self.modules: dict[str, nn.Module] = {}
        self._begun: nn.Module | None = None
        self.optimizers: dict[str, Optimizer] = {}

    @abstractmethod
    def step(self, index: int) -> Mapping[str, Tensor]:
        """Make one optimizer step and return its losses by name, scalars."""

    @abstractmethod
    def loss_of(self, module: Any, index: int) -> Tensor:
        """Return the task's own loss, a scalar, of a module in evaluation mode on a batch."""

    @abstractmethod
    def evaluate(self, split: Literal["validation", "test"], samples: int | None) -> Quality:
        """Measure the averaged model's quality on a split."""

    @abstractmethod
    def preview(self, stem: Path) -> Path:
        """Write a sample (a picture or a text) to `stem` plus a suffix and return its path."""

    @abstractmethod
    def checkpoint(self) -> Checkpoint:
        """Return the finished model."""

    def begun(self, new: Callable[[], nn.Module]) -> Any:
        """Return the model to train: a copy of the one to start with, or a new one.

        Raises:
            UsageError: quantization-aware training finds no layer to round.
        """
        if self.start is not None:
            module = copy.deepcopy(self.start.payload).to(self.device).train()
        else:
            with seeded(self.config.seed, 0):
                module = new().to(self.device)
        bits = machine_scheme().weight_bits
        if self.config.qat and not add_fake_quant(module, weight_bits=bits):
            raise UsageError("qat: the model has no convolution or linear layer to round.")
        for pattern in self.config.freeze:
            if not fnmatch.filter(dict(module.named_parameters()), pattern):
                raise UsageError(f"freeze: the model has no parameter like {pattern}.")
        if self.start is not None and any(s.name == "sparsify" for s in self.start.history):
            _keep_zeros(module)
        self._begun = module
        return module

    def hold(self, index: int) -> None:
        """Before a step: let what is frozen stand still, batch statistics included, or go on."""
        config, module = self.config, self._begun
        if not config.freeze or module is None:
            return
        is_held = config.freeze_steps is None or index < config.freeze_steps
        for name, parameter in module.named_parameters():
            if any(fnmatch.fnmatch(name, pattern) for pattern in config.freeze):
                parameter.requires_grad_(not is_held)
        for part in module.modules():
            own = [*part.parameters(recurse=False)]
            if own:
                part.train(any(each.requires_grad for each in own))

    def adapted(self, student: Any, distill: Distillation) -> list[nn.Parameter]:
        """Add what maps a student's features to its teacher's width, if they are to match.

        Returns:
            Its parameters, to be trained beside the student's.
        """
        if not distill.features:
            return []
        with seeded(self.config.seed, 1):
            widths = student.head.in_features, self.teacher.head.in_features
            self.modules["adaptor"] = nn.Linear(*widths).to(self.device)
        return [*self.modules["adaptor"].parameters()]

    def distilled(
        self,
        loss: Tensor,
        logits: Tensor,
        soft: Tensor,
        features: Tensor,
        wanted: Tensor | None,
    ) -> Tensor:
        """Mix a student's loss on the data with its distance from its teacher.

        Args:
            loss: on the data, a scalar.
            logits: the student's, float32 (..., classes).
            soft: the teacher's, of the same shape.
            features: the student's, float32 (..., width).
            wanted: the teacher's (..., its width); None where they need not match.
        """
        distill: Distillation = self.config.distill  # type: ignore[attr-defined]
        follows = softened_loss(logits, soft, temperature=distill.temperature)
        mixed = (1 - distill.weight) * loss + distill.weight * follows
        if wanted is None or "adaptor" not in self.modules:
            return mixed
        return mixed + distill.features * hint_loss(self.modules["adaptor"], features, wanted)

    def finished(
        self, module: nn.Module, config: BaseModel, **companions: Mapping[str, Any]
    ) -> Checkpoint:
        """Return the checkpoint of a trained module, which is of the shape that it began with."""
        spec = self.start.spec if self.start else None
        return Checkpoint(
            self.name,
            dict(spec.config) if spec else config.model_dump(mode="json"),
            {n: value.cpu() for n, value in without_fake_quant(module).state_dict().items()},
            task=self.name,
            companions=companions,
            sizes=spec.sizes if spec else {},
        )

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as plain data and tensors."""
        return {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: each.state_dict() for name, each in self.optimizers.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    @contextmanager
    def mixed_precision(self) -> Iterator[None]:
        """Run the forward pass in bfloat16 where the configuration and the device say so."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.uses_bf16):
            yield

    @property
    def uses_bf16(self) -> bool:
        """Whether forward passes run in bfloat16."""
        if self.config.precision != "auto":
            return self.config.precision == "bf16"
        return self.device.type == "cuda" or has_fast_bf16()


def _keep_zeros(module: nn.Module) -> None:
    """Let weights that pruning set to zero stay zero: no gradient ever moves them."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and bool((parameter == 0).any()):
            kept = (parameter != 0).to(parameter.dtype)
            parameter.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient, kept=kept: gradient * kept
            )


def mixed_seed(seed: int, index: int) -> int:
    """Return the seed of torch's CPU generator, which reads 32 bits, from (seed, index)."""
    return (index + seed * 0x9E3779B1) % 2**32  # an odd factor: no two seeds below 2**32 are alike


@contextmanager
def seeded(seed: int, index: int) -> Iterator[None]:
    """Seed torch from (seed, index) inside, and give the caller's random state back after."""
    with torch.random.fork_rng():
        torch.manual_seed(mixed_seed(seed, index))
        yield


def epoch_order(count: int, *, seed: int, epoch: int) -> Tensor:
    """Return the order of `count` samples in an epoch, int64 (count,), from (seed, epoch)."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, 2**31 + epoch))
    return torch.randperm(count, generator=generator)


def one_cycle(index: int, steps: int, *, warm_up: float) -> float:
    """Return the factor of the learning rate: linear up over `warm_up`, then a cosine to 0."""
    progress = (index + 1) / steps
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


@torch.no_grad()
def average_into(average: nn.Module, module: nn.Module, *, decay: float, index: int) -> None:
    """Move an exponential moving average of weights and buffers one step on.

    The decay starts low, min(decay, (1 + index) / (10 + index)), so that early weights fade soon.
    """
    keep = min(decay, (1 + index) / (10 + index))
    for mean, value in zip(
        average.state_dict().values(), module.state_dict().values(), strict=True
    ):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - keep)
        else:
            mean.copy_(value)
