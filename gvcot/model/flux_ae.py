"""BAGEL's image autoencoder: FLUX's, 16 channels at 1/8 of the resolution, under its official names.

The convolutional autoencoder of latent diffusion: residual blocks with group norm and SiLU, one attention
layer in the middle, strided convolutions down, nearest-neighbour upsampling up.

Legend: B images, H W pixels, C channels, h w rows and columns of a feature map.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gvcot.errors import ConfigError
from gvcot.model.bagel_json import FLUX_WIDTH
from gvcot.model.codec import Autoencoder

SCALE, SHIFT = 0.3611, 0.1159
"""Latents are SCALE * (posterior mean - SHIFT)."""

MULTIPLIERS = (1, 2, 4, 4)
"""Channels of each level over the base's; the resolution halves between levels."""

BLOCKS = 2
"""Residual blocks of each encoder level; the decoder has one more."""

GROUPS, EPS = 32, 1e-6
"""Of every group norm."""


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=EPS)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with pre-activation group norm; a 1x1 shortcut where the width changes."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = _norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x_BChw)))
        return self.nin_shortcut(x_BChw) + self.conv2(F.silu(self.norm2(h)))


class AttnBlock(nn.Module):
    """Full attention with one head over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        h = self.norm(x_BChw)
        q, k, v = (part(h).flatten(2).mT[:, None] for part in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x_BChw + self.proj_out(out.mT.unflatten(2, x_BChw.shape[2:]))


class Downsample(nn.Module):
    """Halves the resolution; pads the right and the lower edge only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.conv(F.pad(x_BChw, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BChw, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BChw)))


class Level(nn.Module):
    """The residual blocks of one resolution, and the way to the next one."""

    def __init__(self, channels: int, out: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(channels if i == 0 else out, out) for i in range(blocks))

    def forward(self, x_BChw: Tensor) -> Tensor:
        for block in self.block:
            x_BChw = block(x_BChw)
        return x_BChw


class DownLevel(Level):
    """A level of the encoder."""

    def __init__(self, channels: int, out: int, *, last: bool) -> None:
        super().__init__(channels, out, BLOCKS)
        self.downsample = nn.Identity() if last else Downsample(out)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.downsample(super().forward(x_BChw))


class UpLevel(Level):
    """A level of the decoder."""

    def __init__(self, channels: int, out: int, *, last: bool) -> None:
        super().__init__(channels, out, BLOCKS + 1)
        self.upsample = nn.Identity() if last else Upsample(out)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.upsample(super().forward(x_BChw))


def _widths(width: int) -> Iterator[tuple[int, int]]:
    """(channels in, channels out) of the encoder's levels."""
    before = width
    for multiplier in MULTIPLIERS:
        yield before, width * multiplier
        before = width * multiplier


class Encoder(nn.Module):
    """Images (B, 3, H, W) to moments (B, 2 z, H / 8, W / 8): means, then log-variances."""

    def __init__(self, z: int, width: int) -> None:
        super().__init__()
        *_, (_, deep) = widths = list(_widths(width))
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(channels, out, last=i == len(widths) - 1) for i, (channels, out) in enumerate(widths)
        )
        self.mid = Middle(deep)
        self.norm_out = _norm(deep)
        self.conv_out = nn.Conv2d(deep, 2 * z, 3, padding=1)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        x_BChw = self.conv_in(images_B3HW)
        for level in self.down:
            x_BChw = level(x_BChw)
        return self.conv_out(F.silu(self.norm_out(self.mid(x_BChw))))


class Decoder(nn.Module):
    """Unscaled latents (B, z, h, w) to images (B, 3, 8 h, 8 w). `up` counts levels as the encoder does."""

    def __init__(self, z: int, width: int) -> None:
        super().__init__()
        *_, (_, deep) = widths = list(_widths(width))
        self.conv_in = nn.Conv2d(z, deep, 3, padding=1)
        self.mid = Middle(deep)
        outs = [out for _, out in widths]
        self.up = nn.ModuleList(
            UpLevel(above, out, last=i == 0)
            for i, (out, above) in enumerate(zip(outs, [*outs[1:], deep], strict=True))
        )
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, raw_BChw: Tensor) -> Tensor:
        x_BChw = self.mid(self.conv_in(raw_BChw))
        for level in reversed(self.up):
            x_BChw = level(x_BChw)
        return self.conv_out(F.silu(self.norm_out(x_BChw)))


class FluxAE(Autoencoder):
    """BAGEL's codec. Its weights are BAGEL's `ae.safetensors`; 128 base channels are 84 M parameters."""

    kind = "flux"

    def __init__(self, z: int = 16, width: int = FLUX_WIDTH) -> None:
        """
        Args:
            z: latent channels.
            width: base channels, a multiple of 32 (the groups of its norms): 128 in BAGEL.
        """
        super().__init__(z, width)
        if width % GROUPS:
            raise ConfigError(f"flux codec: width must be a multiple of {GROUPS} (group norm); got {width}")
        self.encoder = Encoder(z, width)
        self.decoder = Decoder(z, width)

    def moments(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        self.check_size(images_B3HW)
        mean, logvar = self.encoder(images_B3HW).chunk(2, dim=1)
        return mean, logvar

    def encode(self, images_B3HW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The posterior mean; a sample of the posterior, as BAGEL trains with, where a generator is given."""
        raw, logvar = self.moments(images_B3HW.to(self._device))
        if generator is not None:
            noise = torch.randn(raw.shape, generator=generator, device=generator.device).to(raw)
            raw = raw + (0.5 * logvar).exp() * noise
        return (SCALE * (raw - SHIFT)).to(images_B3HW.device)

    def decode(self, latent_BChw: Tensor) -> Tensor:
        raw = latent_BChw.to(self._device) / SCALE + SHIFT
        return self.decoder(raw).clamp(-1.0, 1.0).to(latent_BChw.device)

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device
