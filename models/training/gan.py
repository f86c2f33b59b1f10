"""Train the reference GAN with the losses of Goodfellow et al. 2014, or the hinge losses.

With logits l = D(.), and log D = -softplus(-l), log(1 - D) = -softplus(l):

* standard:  L_D = -[log D(x) + log(1 - D(G(z)))],  L_G = -log D(G(z))  (the non-saturating form)
* hinge:     L_D = max(0, 1 - l(x)) + max(0, 1 + l(G(z))),  L_G = -l(G(z))  (Lim & Ye 2017)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

from aigc_compress.checkpoint import Checkpoint
from aigc_compress.engines.torch import TorchRunner
from aigc_compress.models import data
from aigc_compress.models.gan import Discriminator, DiscriminatorConfig, GanConfig, Generator
from aigc_compress.models.tasks import make_task
from aigc_compress.task import Quality

from .base import Trainer, TrainingConfig, average_into, epoch_order, seeded
from .pictures import save_grid

__all__ = ["GanTrainer", "GanTraining"]


class GanTraining(TrainingConfig):
    """Settings of the GAN's training."""

    model: GanConfig = GanConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loss: Literal["standard", "hinge"] = Field(
        default="standard", description="see the module's text"
    )
    steps: int = Field(default=30_000, ge=1, description="steps; 859 see every image once")
    batch_size: int = Field(default=64, ge=2, description="images of a step")
    generator_rate: float = Field(
        default=2e-4, gt=0, description="Adam learning rate of the generator"
    )
    # Two time-scales (Heusel et al. 2017): at equal rates the discriminator stayed near chance, and
    # KID on validation data (EfficientNet-Lite0) stood still at 116; four times the rate took it to
    # 70 within 4,000 steps.
    discriminator_rate: float = Field(
        default=8e-4, gt=0, description="Adam learning rate of the discriminator"
    )
    beta1: float = Field(default=0.5, ge=0, lt=1, description="Adam's first-moment decay")
    r1_gamma: float = Field(
        default=0.0, ge=0, description="weight of the R1 penalty (Mescheder et al. 2018); 0: none"
    )
    r1_every: int = Field(default=16, ge=1, description="steps between R1 penalties, weighted up")
    decay_from: float = Field(
        default=0.5, ge=0, le=1, description="share of steps after which rates fall"
    )
    validate_every: int = Field(default=2000, ge=1, description="steps between validations")
    validation_samples: int = Field(default=1000, ge=100, description="samples of each validation")


class GanTrainer(Trainer):
    """Generator and discriminator, one step each in turn, with an averaged generator."""

    name = "gan"
    data_name = "Fashion-MNIST"
    config: GanTraining

    def __init__(self, config: GanTraining, *, device: torch.device, images: data.Images) -> None:
        super().__init__(config, device=device)
        self.pixels = torch.from_numpy(data.to_unit_range(images.pixels))
        with seeded(config.seed, 0):
            self.generator = Generator(config.model).to(device)
            self.discriminator = Discriminator(config.discriminator).to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.modules = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
        }
        self.optimizers = {
            "generator": self._adam(self.generator, config.generator_rate),
            "discriminator": self._adam(self.discriminator, config.discriminator_rate),
        }

    def step(self, index: int) -> Mapping[str, Tensor]:
        """Make one step of the discriminator, then one of the generator, on the same latents."""
        self._set_rates(index)
        real = self._real(index)
        latents = torch.randn(len(real), self.config.model.latent).to(self.device)
        with self.mixed_precision():
            drawn = self.generator(latents)
            on_both = self.discriminator(torch.cat([real, drawn.detach().float()]))
        on_real, on_drawn = on_both.float().chunk(2)
        loss_d = _discriminator_loss(on_real, on_drawn, kind=self.config.loss)
        if self.config.r1_gamma and index % self.config.r1_every == 0:
            loss_d = loss_d + self.config.r1_every * self._gradient_penalty(real)
        self._descend("discriminator", loss_d)
        with self.mixed_precision():
            judged = self.discriminator(drawn)
        loss_g = _generator_loss(judged.float(), kind=self.config.loss)
        self._descend("generator", loss_g)
        average_into(self.average, self.generator, decay=self.config.ema_decay, index=index)
        return {
            "discriminator_loss": loss_d.detach(),
            "generator_loss": loss_g.detach(),
            "real_logit": on_real.detach().mean(),
            "drawn_logit": on_drawn.detach().mean(),
        }

    def evaluate(self, split: Literal["validation", "test"], samples: int | None) -> Quality:
        """Measure the averaged generator's KID and the share of every class in its drawings.

        A missing class here is the sign of mode collapse.
        """
        task = make_task("gan", self.config.model.model_dump())
        return task.evaluate(TorchRunner(self._settled()), split=split, samples=samples)

    def preview(self, stem: Path) -> Path:
        """Write a grid drawn from the same 64 latents each time."""
        with seeded(self.config.seed, 0):
            latents = torch.randn(64, self.config.model.latent)
        images = TorchRunner(self._settled()).run({"z": latents.numpy()})["image"]
        return save_grid(images, stem.with_suffix(".png"))

    def checkpoint(self) -> Checkpoint:
        """Return the averaged generator, with the discriminator as its companion."""
        discriminator = {
            "model": "gan-discriminator",
            "config": self.config.discriminator.model_dump(mode="json"),
            "state_dict": _on_cpu(self.discriminator),
        }
        return Checkpoint(
            "gan",
            self.config.model.model_dump(mode="json"),
            _on_cpu(self._settled()),
            task="gan",
            companions={"discriminator": discriminator},
        )

    def _sources(self, checkpoint: Checkpoint) -> Mapping[str, Mapping[str, Any]]:
        discriminator = checkpoint.companions.get("discriminator", {}).get("state_dict", {})
        return {**super()._sources(checkpoint), "discriminator": discriminator}

    def _settled(self) -> Generator:
        """Return the averaged generator with batch statistics measured on its own activations."""
        settled = copy.deepcopy(self.average)
        norms = [m for m in settled.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        settled.train()
        with torch.inference_mode(), seeded(self.config.seed, 0):
            for _ in range(20):
                settled(torch.randn(100, self.config.model.latent).to(self.device))
        return settled.eval()

    def _adam(self, module: nn.Module, rate: float) -> torch.optim.Adam:
        return torch.optim.Adam(module.parameters(), lr=rate, betas=(self.config.beta1, 0.999))

    def _set_rates(self, index: int) -> None:
        start = self.config.decay_from
        progress = index / self.config.steps
        factor = 1.0 if progress < start else (1 - progress) / (1 - start)
        self.optimizers["generator"].param_groups[0]["lr"] = self.config.generator_rate * factor
        rate = self.config.discriminator_rate * factor
        self.optimizers["discriminator"].param_groups[0]["lr"] = rate

    def _real(self, index: int) -> Tensor:
        size = self.config.batch_size
        epoch, position = divmod(index, len(self.pixels) // size)
        order = epoch_order(len(self.pixels), seed=self.config.seed, epoch=epoch)
        picks = order[position * size : (position + 1) * size]
        mirrored = torch.rand(size, 1, 1, 1) < 0.5
        real = self.pixels[picks]
        return torch.where(mirrored, real.flip(3), real).to(self.device)

    def _gradient_penalty(self, real: Tensor) -> Tensor:
        """Return gamma / 2 E[|grad_x D(x)|^2] on real images, in full precision."""
        images = real.detach().requires_grad_()
        logits = self.discriminator(images).sum()
        (gradient,) = torch.autograd.grad(logits, images, create_graph=True)
        return self.config.r1_gamma / 2 * gradient.square().sum((1, 2, 3)).mean()

    def _descend(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _discriminator_loss(on_real: Tensor, on_drawn: Tensor, *, kind: str) -> Tensor:
    if kind == "hinge":
        return F.relu(1 - on_real).mean() + F.relu(1 + on_drawn).mean()
    return F.softplus(-on_real).mean() + F.softplus(on_drawn).mean()


def _generator_loss(on_drawn: Tensor, *, kind: str) -> Tensor:
    return -on_drawn.mean() if kind == "hinge" else F.softplus(-on_drawn).mean()


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in module.state_dict().items()}
