"""Energy networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .errors import ConfigError


class ConvEnergy(nn.Module):
    """A bottom-up ConvNet: images (B, C, H, W) -> energies (B,).

    One 3x3 convolution at full size, then 4x4 convolutions that halve the image and double the
    features until it is about 4 pixels wide (at least two of them), then a linear layer: the
    network of Nijkamp et al. (2019) for any image size.

    Args:
        channels, size: of the images, which are square.
        width: features of the first layer.
        leak: slope of the leaky rectifiers. With ``activation="silu"`` the energy is smooth, which
            back-propagation through a chain needs.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        width: int = 32,
        activation: str = "leaky_relu",
        leak: float = 0.05,
    ) -> None:
        super().__init__()
        if size < 8:
            raise ConfigError(f"images of {size} pixels are too small: give 8 or more")
        if activation not in ("leaky_relu", "silu"):
            raise ConfigError(f"activation={activation!r}: give 'leaky_relu' or 'silu'")

        def activate() -> nn.Module:
            return nn.SiLU() if activation == "silu" else nn.LeakyReLU(leak)

        halvings = max(2, int(math.log2(size / 4)))
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1), activate()]
        for _ in range(halvings):
            layers += [nn.Conv2d(width, 2 * width, 4, 2, 1), activate()]
            width, size = 2 * width, size // 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width * size * size, 1)
        # Its convolutions are faster in this format on every device that this was tried on.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.features(x)
        with torch.autocast(x.device.type, enabled=False):  # energies differ in their last digits
            energy: Tensor = self.head(features.flatten(1).to(self.head.weight.dtype))
        return energy.squeeze(1)
