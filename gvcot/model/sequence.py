"""From segments to one packed sequence: what the model reads.

Legend: L tokens of a pack, N latent tokens of one image, D values per latent token, T text ids. The rules
of the layout (boundaries, position ids, visibility) are in `layout`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gvcot.errors import ConfigError, DataError
from gvcot.model.config import UnifiedConfig
from gvcot.model.layout import TEXT_PLACEHOLDER, Grid, Kind, Packed, SegmentShape, layout

__all__ = ["Grid", "Packed", "Segment", "pack"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """One piece of a sequence. Build it with `text`, `vae`, `vit` or `noise`."""

    kind: Kind
    data: Tensor
    """Text ids (T,), latent tokens (N, D), or pixels (3, H, W) in [-1, 1]."""

    grid: Grid | None = None
    """Latent tokens as (rows, columns); None for text and ViT."""

    t: Tensor | float = 0.0
    """Noise level of latent tokens: 0 for clean ones."""

    loss: bool = False
    """Text only: predict the ids and the end of text."""

    drop: bool = False
    """Leave the segment out (condition dropout, guidance branches), but keep its place if an image."""

    bare: bool = False
    """Text only: add no bos and eos."""

    @classmethod
    def text(cls, ids_T: Tensor, *, loss: bool = False, drop: bool = False, bare: bool = False) -> Segment:
        """Text ids int64 (T,); bos and eos are added unless `bare`.

        Bare pieces are for writing text into a cache token by token: [bos], [id], ..., [eos].
        """
        if bare and loss:
            raise ConfigError("a bare text segment has no loss; pass the whole text without bos and eos")
        return cls(kind="text", data=ids_T, loss=loss, drop=drop, bare=bare)

    @classmethod
    def vae(cls, tokens_ND: Tensor, grid: Grid, *, drop: bool = False) -> Segment:
        """A clean image as latent tokens (N, D)."""
        return cls(kind="vae", data=tokens_ND, grid=grid, drop=drop)

    @classmethod
    def vit(cls, pixels_3HW: Tensor, *, drop: bool = False) -> Segment:
        """An image as pixels (3, H, W) in [-1, 1], to be seen through the ViT."""
        return cls(kind="vit", data=pixels_3HW, drop=drop)

    @classmethod
    def noise(cls, x_ND: Tensor, t: Tensor | float, grid: Grid) -> Segment:
        """Noisy latent tokens (N, D) at time t (a number or a 0-d tensor): their velocity is predicted."""
        return cls(kind="noise", data=x_ND, grid=grid, t=t)


def pack(samples: Sequence[Sequence[Segment]], config: UnifiedConfig) -> Packed:
    """Lay samples out one after another and collect their payloads.

    Raises:
        DataError: a payload's shape does not fit its grid, the patch size or the position tables.
        ConfigError: a ViT segment for a model without a ViT.
    """
    shapes = tuple(tuple(_shape(segment, config) for segment in sample) for sample in samples)
    plan = layout(shapes, config)
    kept = [segment for sample in samples for segment in sample if not segment.drop]
    device = _device(kept)
    plan = plan if device.type == "cpu" else plan.to(device)

    words = [segment.data for segment in kept if segment.kind == "text"]
    latents = [segment for segment in kept if segment.kind in ("vae", "noise")]
    token_ids = plan.token_ids_L
    if words:
        token_ids = token_ids.masked_scatter(token_ids == TEXT_PLACEHOLDER, torch.cat(words).to(device))
    logit_positions = plan.und_idx[plan.logit_rows_Q]
    return dataclasses.replace(
        plan,
        token_ids_L=token_ids,
        latent_GD=torch.cat([segment.data for segment in latents]) if latents else plan.latent_GD,
        t_S=_times(latents, device),
        vit_pixels=_stack_by_size([segment.data for segment in kept if segment.kind == "vit"]),
        text_targets_Q=token_ids[logit_positions + 1],
    )


def _device(kept: Sequence[Segment]) -> torch.device:
    """The device of the images, or of the text where there are none."""
    for segment in kept:
        if segment.kind != "text":
            return segment.data.device
    return kept[0].data.device if kept else torch.device("cpu")


def _shape(segment: Segment, config: UnifiedConfig) -> SegmentShape:
    data = segment.data
    if segment.kind == "text":
        if data.ndim != 1 or data.is_floating_point():
            raise DataError(f"text ids must be an integer tensor (T,), got {data.dtype} {tuple(data.shape)}")
        num_ids = data.shape[0]
        length = num_ids if segment.bare else num_ids + 2
        return SegmentShape("text", num_ids, length, (0, 0), segment.loss, segment.drop)
    if segment.kind == "vit":
        grid = _vit_grid(data, config)
        num_patches = grid[0] * grid[1]
        return SegmentShape("vit", num_patches, num_patches + 2, grid, False, segment.drop)
    grid = segment.grid or (0, 0)
    expected = (grid[0] * grid[1], config.latent_dim)
    if tuple(data.shape) != expected:
        raise DataError(
            f"latent tokens of a {grid[0]}x{grid[1]} grid must be {expected}, got {tuple(data.shape)}; "
            "pass tokens from flow.patchify and their grid as (rows, columns)"
        )
    if max(grid) > config.max_latent:
        raise DataError(
            f"a latent grid of {grid} exceeds this model's {config.max_latent} positions per side"
        )
    return SegmentShape(segment.kind, expected[0], expected[0] + 2, grid, False, segment.drop)


def _vit_grid(pixels: Tensor, config: UnifiedConfig) -> Grid:
    if config.vit is None:
        raise ConfigError("this model has no ViT (config.vit is None); leave ViT segments out")
    patch = config.vit.patch
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.shape[1] % patch or pixels.shape[2] % patch:
        raise DataError(
            f"ViT pixels must be (3, H, W) with sides that are multiples of {patch}, "
            f"got {tuple(pixels.shape)}"
        )
    grid = (pixels.shape[1] // patch, pixels.shape[2] // patch)
    if max(grid) > config.vit.max_side:
        raise DataError(
            f"ViT pixels {tuple(pixels.shape)} give a {grid[0]}x{grid[1]} grid, the ViT has positions for "
            f"{config.vit.max_side} patches per side; resize to {config.vit.max_side * patch} px or less"
        )
    return grid


def _times(latents: Sequence[Segment], device: torch.device) -> Tensor:
    if any(isinstance(segment.t, Tensor) for segment in latents):
        times = [torch.as_tensor(segment.t, dtype=torch.float32, device=device) for segment in latents]
        return torch.stack([t.reshape(()) for t in times])
    return torch.tensor([segment.t for segment in latents], dtype=torch.float32, device=device)


def _stack_by_size(images: Sequence[Tensor]) -> tuple[Tensor, ...]:
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for image in images:
        groups.setdefault(tuple(image.shape), []).append(image)
    return tuple(torch.stack(group) for group in groups.values())
