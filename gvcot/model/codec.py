"""Image codecs: pixels <-> latents in BAGEL's geometry (16 channels at 1/8 of the resolution).

Legend: B images, H W pixels, C latent channels, h = H / 8, w = W / 8.

Every codec returns the posterior *mean*, scaled and shifted so that latents have about unit variance:
sampling the posterior would make a replay's conditions differ from its rollout's and break the
importance ratio.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gvcot.errors import ConfigError, DataError
from gvcot.model.config import CodecKind


class Codec(Protocol):
    """What the rest of the system knows of a codec."""

    down: int
    """Pixels per latent cell along one axis."""

    z: int
    """Latent channels."""

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Images in [-1, 1] -> scaled posterior means (B, z, H / down, W / down)."""
        ...

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Scaled latents -> images (B, 3, H, W), clipped to [-1, 1]."""
        ...


MOST_PIXELS = 4 * 512 * 512
"""Pixels that go through a codec at once: BAGEL's needs .75 GiB for an image of 512 x 512."""


def encode_in_parts(codec: Codec, images_B3HW: Tensor) -> Tensor:
    """Latents of any number of images; of large ones only a few at once, as `MOST_PIXELS` says."""
    at_once = max(1, MOST_PIXELS // (images_B3HW.shape[-2] * images_B3HW.shape[-1]))
    return torch.cat([codec.encode(part) for part in images_B3HW.split(at_once)])


def decode_in_parts(codec: Codec, latent_BChw: Tensor) -> Tensor:
    """Images of any number of latents, likewise."""
    at_once = max(1, MOST_PIXELS // (Autoencoder.down**2 * latent_BChw.shape[-2] * latent_BChw.shape[-1]))
    return torch.cat([codec.decode(part) for part in latent_BChw.split(at_once)])


class Autoencoder(nn.Module, ABC):
    """A codec with weights: what checkpoint folders hold. `build_codec` makes one from its configuration."""

    kind: ClassVar[CodecKind]
    down = 8

    def __init__(self, z: int, width: int) -> None:
        super().__init__()
        self.z, self.width = z, width

    @abstractmethod
    def moments(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Unscaled posterior mean and log-variance, each (B, z, h, w).

        Raises:
            DataError: the images' sides are not multiples of 8 or they are not RGB.
        """

    @abstractmethod
    def encode(self, images_B3HW: Tensor) -> Tensor:
        """See `Codec`."""

    @abstractmethod
    def decode(self, latent_BChw: Tensor) -> Tensor:
        """See `Codec`."""

    def check_size(self, images_B3HW: Tensor) -> None:
        """Raises DataError for images that the codec cannot take."""
        _, channels, height, width = images_B3HW.shape
        if channels != 3 or height % self.down or width % self.down:
            raise DataError(
                f"the codec takes RGB images with sides divisible by {self.down}; "
                f"got {tuple(images_B3HW.shape)}: resize or pad the image first"
            )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with pre-activation group norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x_BChw: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x_BChw)))
        return x_BChw + self.conv2(F.silu(self.norm2(h)))


class TinyAE(Autoencoder):
    """A small variational autoencoder for laptop-size experiments.

    Almost all work happens at 1/4 and 1/8 of the resolution (pixel shuffles do the rest), which keeps
    encoding three 64x64 images cheaper than one training step on them.
    """

    kind = "tiny"

    def __init__(self, z: int = 16, width: int = 64) -> None:
        """
        Args:
            z: latent channels.
            width: channels at 1/4 of the resolution, a multiple of 8; twice as many at 1/8.
        """
        super().__init__(z, width)
        if width % 8:
            raise ConfigError(f"codec width must be a multiple of 8 (group norm); got {width}")
        wide = 2 * width
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, width, 3, padding=1),
            ResidualBlock(width),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * width, wide, 1),
            ResidualBlock(wide),
            ResidualBlock(wide),
            nn.GroupNorm(8, wide),
            nn.SiLU(),
            nn.Conv2d(wide, 2 * z, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(z, wide, 3, padding=1),
            ResidualBlock(wide),
            ResidualBlock(wide),
            nn.Conv2d(wide, 4 * width, 1),
            nn.PixelShuffle(2),
            ResidualBlock(width),
            ResidualBlock(width),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, 8 * 16, 3, padding=1),
            nn.PixelShuffle(4),
            nn.SiLU(),
            nn.Conv2d(8, 3, 3, padding=1),
        )
        self.register_buffer("shift", torch.zeros(z))
        self.register_buffer("scale", torch.ones(z))
        self.shift: Tensor
        self.scale: Tensor

    def moments(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        self.check_size(images_B3HW)
        mean, logvar = self.encoder(images_B3HW).chunk(2, dim=1)
        return mean, logvar.clamp(-20.0, 4.0)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        mean, _ = self.moments(images_B3HW.to(self.shift.device))
        return ((mean - self.shift[:, None, None]) * self.scale[:, None, None]).to(images_B3HW.device)

    def decode(self, latent_BChw: Tensor) -> Tensor:
        raw = latent_BChw.to(self.shift.device) / self.scale[:, None, None] + self.shift[:, None, None]
        return self.decoder(raw).clamp(-1.0, 1.0).to(latent_BChw.device)

    def set_statistics(self, mean_BChw: Tensor) -> None:
        """Make latents zero-mean and unit-variance per channel over the given posterior means."""
        values = mean_BChw.transpose(0, 1).flatten(1)
        self.shift.copy_(values.mean(1))
        self.scale.copy_(values.std(1).clamp_min(1e-6).reciprocal())
