"""A DCGAN (Radford et al. 2015) for 28x28 grey images, with 5x5 kernels."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["Discriminator", "DiscriminatorConfig", "GanConfig", "Generator"]

LEAK = 0.2


class GanConfig(BaseModel):
    """Shape of the generator: 7x7 -> 14x14 -> 28x28."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent: int = Field(default=100, ge=1, description="length of the latent vector")
    widths: tuple[int, int, int] = Field(
        default=(128, 128, 128), description="channels after the projection, at 7x7 and at 14x14"
    )


class DiscriminatorConfig(BaseModel):
    """Shape of the discriminator: 28x28 -> 14x14 -> 7x7 -> 4x4."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[int, int, int] = Field(
        default=(64, 128, 256), description="channels of each layer"
    )
    spectral_norm: bool = Field(default=True, description="normalize weights (Miyato et al. 2018)")


class Generator(nn.Module):
    """Draw an image from a latent vector.

    Shapes: z float32 (N, latent), standard normal -> image float32 (N, 1, 28, 28) in [-1, 1].
    """

    input_names = ("z",)
    output_names = ("image",)

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        self.config = config
        first, second, third = config.widths
        self.project = nn.Sequential(
            nn.Linear(config.latent, first * 49, bias=False),
            nn.BatchNorm1d(first * 49),
            nn.LeakyReLU(LEAK),
            nn.Unflatten(1, (first, 7, 7)),
        )
        self.upsample = nn.Sequential(
            nn.ConvTranspose2d(first, second, 5, 1, 2, bias=False),
            nn.BatchNorm2d(second),
            nn.LeakyReLU(LEAK),
            nn.ConvTranspose2d(second, third, 5, 2, 2, 1, bias=False),
            nn.BatchNorm2d(third),
            nn.LeakyReLU(LEAK),
            nn.ConvTranspose2d(third, 1, 5, 2, 2, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return the images (N, 1, 28, 28)."""
        return torch.tanh(self.upsample(self.project(z)))


class Discriminator(nn.Module):
    """Judge an image: the logit that it is real.

    Shapes: image float32 (N, 1, 28, 28) in [-1, 1] -> logit float32 (N,).
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        normalize = spectral_norm if config.spectral_norm else _keep
        layers: list[nn.Module] = []
        width = 1
        for out in config.widths:
            layers += [normalize(nn.Conv2d(width, out, 5, 2, 2)), nn.LeakyReLU(LEAK)]
            width = out
        self.layers = nn.Sequential(*layers)
        self.head = normalize(nn.Linear(width * 16, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (N,)."""
        return self.judged_with_features(image)[0]

    def judged_with_features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits, and the activations of every layer, (N, width, H, W)."""
        features: list[Tensor] = []
        x = image
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                features.append(x)
        return self.head(x.flatten(1)).squeeze(1), features


def _keep(module: nn.Module) -> nn.Module:
    return module
