"""Frozen 2-D position tables and the embedding of time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

TIME_FEATURES = 256


def sin_cos_table(side: int, dim: int) -> Float[Tensor, "rows dim"]:
    """Sin-cos positions of a side x side grid: fp32 (side**2, dim), row = y * side + x.

    The first half of a row encodes the column (x), the second half the row (y); each half is sines,
    then cosines, of position / 10000^(i / (dim / 4)). (ViT and MAE use the same table.)
    """
    frequency = 1.0 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    columns = axis[None, :, :].expand(side, side, -1)
    rows = axis[:, None, :].expand(side, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(side * side, dim).float()


class PositionTable(nn.Module):
    """A frozen table under BAGEL's name `pos_embed`."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(torch.empty(side * side, dim), requires_grad=False)

    def reset(self) -> None:
        """Fill in the sin-cos values."""
        with torch.no_grad():
            self.pos_embed.copy_(sin_cos_table(self.side, self.pos_embed.shape[1]))

    def forward(self, rows: Tensor) -> Tensor:
        return self.pos_embed[rows]


def time_features(t_S: Float[Tensor, " S"]) -> Float[Tensor, "S 256"]:
    """Cosines, then sines, of t * 10000^(-i / 128), with t in [0, 1] unscaled."""
    half = TIME_FEATURES // 2
    index = torch.arange(half, device=t_S.device, dtype=torch.float32)
    angle = t_S.float()[:, None] * 10000 ** (-index / half)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class TimeEmbedder(nn.Module):
    """Time features through Linear, SiLU, Linear."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, t_S: Tensor) -> Tensor:
        dtype = next(self.mlp.parameters()).dtype
        return self.mlp(time_features(t_S).to(dtype))
