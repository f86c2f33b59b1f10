"""Train the reference GAN with the losses of Goodfellow et al. 2014, or the hinge losses.

With logits l = D(.), and log D = -softplus(-l), log(1 - D) = -softplus(l):

* standard:  L_D = -[log D(x) + log(1 - D(G(z)))],  L_G = -log D(G(z))  (the non-saturating form)
* hinge:     L_D = max(0, 1 - l(x)) + max(0, 1 + l(G(z))),  L_G = -l(G(z))  (Lim & Ye 2017)

A student learns from a teacher G_t on the same latents (Aguinaldo et al. 2019; Li et al. 2020, GAN
Compression, equations 1 to 4), with D_k the discriminator's k-th layer:

* L_G = adversarial * L_G + pixels * mean |G(z) - G_t(z)|
        + features * mean_k ( mean |D_k(G(z)) - D_k(G_t(z))| / mean |D_k(G_t(z))| )

Its discriminator begins as the teacher's. It rests while its logits tell real from drawn images by
more than `balance`, since a small generator cannot keep up with it. With `adversarial` and
`features` at 0 nobody judges: the student imitates, in a fifth of the time, which is how it begins.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

from aigc_compress.artifact import Artifact
from aigc_compress.checkpoint import Checkpoint
from aigc_compress.engines.torch import TorchRunner
from aigc_compress.errors import InputFileError, first_line
from aigc_compress.models import data
from aigc_compress.models.gan import Discriminator, DiscriminatorConfig, GanConfig, Generator
from aigc_compress.models.tasks import make_task
from aigc_compress.task import Quality

from .base import Trainer, TrainingConfig, average_into, epoch_order, seeded
from .pictures import save_grid

__all__ = ["GanTrainer", "GanTraining"]


class GanDistillation(BaseModel):
    """How a generator follows its teacher; see the module's text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adversarial: float = Field(default=1.0, ge=0, description="weight of the adversarial loss")
    pixels: float = Field(default=10.0, ge=0, description="weight of the distance of pixels")
    features: float = Field(
        default=1.0, ge=0, description="weight of the distance in the discriminator's layers"
    )
    balance: float = Field(
        default=6.0, gt=0, description="gap of logits above which the discriminator rests"
    )


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
    distill: GanDistillation = GanDistillation()
    validate_every: int = Field(default=2000, ge=1, description="steps between validations")
    validation_samples: int = Field(default=1000, ge=100, description="samples of each validation")


class GanTrainer(Trainer):
    """Generator and discriminator, one step each in turn, with an averaged generator."""

    name = "gan"
    data_name = "Fashion-MNIST"
    config: GanTraining

    def __init__(
        self,
        config: GanTraining,
        *,
        device: torch.device,
        images: data.Images,
        start: Artifact | None = None,
        teacher: Artifact | None = None,
    ) -> None:
        super().__init__(config, device=device, start=start, teacher=teacher)
        self.pixels = torch.from_numpy(data.to_unit_range(images.pixels))
        self.generator = self.begun(lambda: Generator(config.model))
        with seeded(config.seed, 1):
            self.discriminator = Discriminator(config.discriminator).to(device)
        for source in (start, teacher):
            if source is not None and "discriminator" in source.companions:
                _load(self.discriminator, source.companions["discriminator"])
                break
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
        if self._imitates_alone:
            losses = self._imitate()
            average_into(self.average, self.generator, decay=self.config.ema_decay, index=index)
            return losses
        real = self._real(index)
        latents = torch.randn(len(real), self.config.model.latent).to(self.device)
        with self.mixed_precision():
            drawn = self.generator(latents)
            on_both = self.discriminator(torch.cat([real, drawn.detach().float()]))
        on_real, on_drawn = on_both.float().chunk(2)
        gap = on_real.detach().mean() - on_drawn.detach().mean()
        loss_d = _discriminator_loss(on_real, on_drawn, kind=self.config.loss)
        if self.config.r1_gamma and index % self.config.r1_every == 0:
            loss_d = loss_d + self.config.r1_every * self._gradient_penalty(real)
        if self.teacher is None or gap < self.config.distill.balance:
            self._descend("discriminator", loss_d)
        self.discriminator.requires_grad_(False)  # its gradients here would be thrown away
        loss_g, distances = self._generator_loss(latents, drawn)
        self._descend("generator", loss_g)
        self.discriminator.requires_grad_(True)
        average_into(self.average, self.generator, decay=self.config.ema_decay, index=index)
        return {
            "discriminator_loss": loss_d.detach(),
            "generator_loss": loss_g.detach(),
            "real_logit": on_real.detach().mean(),
            "drawn_logit": on_drawn.detach().mean(),
            **distances,
        }

    @property
    def _imitates_alone(self) -> bool:
        """Whether nobody judges: then neither discriminator nor real images are needed."""
        distill = self.config.distill
        return self.teacher is not None and not distill.adversarial and not distill.features

    def _imitate(self) -> Mapping[str, Tensor]:
        """Make one step towards the teacher's images alone."""
        latents = torch.randn(self.config.batch_size, self.config.model.latent).to(self.device)
        with self.mixed_precision():
            with torch.no_grad():
                wanted = self.teacher(latents)
            drawn = self.generator(latents)
        pixels = F.l1_loss(drawn.float(), wanted.float())
        self._descend("generator", self.config.distill.pixels * pixels)
        return {"pixels": pixels.detach()}

    def _generator_loss(
        self, latents: Tensor, drawn: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the generator's loss, and its distances from the teacher where it has one."""
        if self.teacher is None:
            with self.mixed_precision():
                judged = self.discriminator(drawn)
            return _adversarial_loss(judged.float(), kind=self.config.loss), {}
        distill = self.config.distill
        with self.mixed_precision():
            judged, own = self.discriminator.judged_with_features(drawn)
        loss = distill.adversarial * _adversarial_loss(judged.float(), kind=self.config.loss)
        distances: dict[str, Tensor] = {}
        if not (distill.pixels or distill.features):
            return loss, distances
        # What has no weight is not computed: each network is a tenth of a step.
        with torch.no_grad(), self.mixed_precision():
            wanted = self.teacher(latents)
        distances["pixels"] = F.l1_loss(drawn.float(), wanted.float())
        loss = loss + distill.pixels * distances["pixels"]
        if distill.features:
            with torch.no_grad(), self.mixed_precision():
                _, taught = self.discriminator.judged_with_features(wanted)
            shares = [
                F.l1_loss(a.float(), b.float()) / b.float().abs().mean().clamp_min(1e-6)
                for a, b in zip(own, taught, strict=True)
            ]
            distances["features"] = torch.stack(shares).mean()
            loss = loss + distill.features * distances["features"]
        return loss, {name: value.detach() for name, value in distances.items()}

    def loss_of(self, module: Any, index: int) -> Tensor:
        """Return what the discriminator has against a generator's images."""
        latents = torch.randn(self.config.batch_size, self.config.model.latent).to(self.device)
        return _adversarial_loss(self.discriminator(module(latents)), kind=self.config.loss)

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
        return self.finished(self._settled(), self.config.model, discriminator=discriminator)

    def _settled(self) -> nn.Module:
        """Return the averaged generator with batch statistics measured on its own activations."""
        settled: nn.Module = copy.deepcopy(self.average)
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


def _adversarial_loss(on_drawn: Tensor, *, kind: str) -> Tensor:
    return -on_drawn.mean() if kind == "hinge" else F.softplus(-on_drawn).mean()


def _load(discriminator: Discriminator, companion: Mapping[str, Any]) -> None:
    """Begin with another discriminator's weights; raises InputFileError where they do not fit."""
    try:
        discriminator.load_state_dict(dict(companion["state_dict"]))
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputFileError(
            "The discriminator of that model is of another shape than --set discriminator says:"
            f" {first_line(error)}"
        ) from error


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in module.state_dict().items()}
