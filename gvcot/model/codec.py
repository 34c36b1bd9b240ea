"""Image codecs: pixels <-> latents in BAGEL's geometry (16 channels at 1/8 of the resolution).

Legend: B images, H W pixels, C latent channels, h = H / 8, w = W / 8.

Every codec returns the posterior *mean*, scaled and shifted so that latents have about unit variance:
sampling the posterior would make a replay's conditions differ from its rollout's and break the
importance ratio.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gvcot.errors import CheckpointError, ConfigError, DataError

CODEC_FILE = "ae.safetensors"
"""The codec's weights inside a checkpoint folder, named as BAGEL names it."""


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


class TinyAE(nn.Module):
    """A small variational autoencoder for laptop-size experiments.

    Almost all work happens at 1/4 and 1/8 of the resolution (pixel shuffles do the rest), which keeps
    encoding three 64x64 images cheaper than one training step on them.
    """

    down = 8

    def __init__(self, z: int = 16, width: int = 64) -> None:
        """
        Args:
            z: latent channels.
            width: channels at 1/4 of the resolution, a multiple of 8; twice as many at 1/8.
        """
        super().__init__()
        if width % 8:
            raise ConfigError(f"codec width must be a multiple of 8 (group norm); got {width}")
        self.z, self.width = z, width
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
        """Unscaled posterior mean and log-variance, each (B, z, h, w).

        Raises:
            DataError: the images' sides are not multiples of 8 or they are not RGB.
        """
        _, channels, height, width = images_B3HW.shape
        if channels != 3 or height % self.down or width % self.down:
            raise DataError(
                f"the codec takes RGB images with sides divisible by {self.down}; "
                f"got {tuple(images_B3HW.shape)}: resize or pad the image first"
            )
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


def save_codec(codec: TinyAE, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the codec's weights to `folder/ae.safetensors`."""
    state = {k: v.to(dtype).contiguous() for k, v in codec.state_dict().items()}
    save_file(
        state, folder / CODEC_FILE, metadata={"kind": "tiny", "z": str(codec.z), "width": str(codec.width)}
    )


def load_codec(folder: Path, *, z: int, width: int) -> TinyAE:
    """Read `folder/ae.safetensors`, strictly.

    Raises:
        CheckpointError: the file is absent, truncated, or of a codec with other sizes.
    """
    path = folder / CODEC_FILE
    codec = TinyAE(z=z, width=width)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read the codec {path}: {error}. Expected a safetensors file; copy it again or train one "
            "with `gvcot sft tiny-codec`"
        ) from error
    expected = {k: tuple(v.shape) for k, v in codec.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in state.items()}
    if expected != found:
        wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        raise CheckpointError(
            f"{path} is not a TinyAE with z={z}, width={width}: {len(wrong)} tensors differ, "
            f"first {wrong[:4]}. Use the codec that belongs to this checkpoint's config.json"
        )
    codec.load_state_dict({k: v.float() for k, v in state.items()})
    return codec.requires_grad_(False)
