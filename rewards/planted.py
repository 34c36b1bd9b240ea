"""Behaviours planted by hand: what a policy might do instead of its task, and the truth beside it.

They show what a reward is fooled by, before a policy finds out: `gvcot rewards try` draws them with their
scores, `gvcot rewards hacks` sets every reward of a recipe against all of them.

Legend: B chains, H W pixels. Images are float in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gvcot import overlay
from gvcot.errors import RewardError
from gvcot.types import PaintStyle
from rewards.base import RewardBatch
from rewards.canaries import with_truth


def truth(batch: RewardBatch) -> RewardBatch:
    """Paints the true region and draws the target."""
    return with_truth(batch)


def copy_source(batch: RewardBatch) -> RewardBatch:
    """Paints the true region and hands back the source."""
    return _edited(batch, batch.source_rt_B3HW)


def paint_everything(batch: RewardBatch) -> RewardBatch:
    """Paints the whole image and draws the target."""
    return _reasoned(batch, torch.ones_like(batch.mask_BHW()))


def paint_nothing(batch: RewardBatch) -> RewardBatch:
    """Hands back the source for its reasoning and draws the target."""
    return replace(with_truth(batch), images=with_truth(batch).images | {"x_cot": batch.source_rt_B3HW})


def paint_elsewhere(batch: RewardBatch) -> RewardBatch:
    """Paints the mirrored region and draws the target."""
    return _reasoned(batch, batch.mask_BHW().flip(2))


def leak_paint(batch: RewardBatch) -> RewardBatch:
    """Draws the target with the paint still on it."""
    return _edited(batch, overlay.paint(_target(batch), batch.mask_BHW(), _styles(batch)))


def saturate(batch: RewardBatch) -> RewardBatch:
    """Draws the target in loud colours: contrast four times as high."""
    return _edited(batch, (4 * _target(batch)).clamp(-1, 1))


def whiten(batch: RewardBatch) -> RewardBatch:
    """Draws the target washed out, three quarters of the way to white."""
    return _edited(batch, 0.25 * _target(batch) + 0.75)


def add_grid(batch: RewardBatch) -> RewardBatch:
    """Draws the target under a fine grid, as flow policies do that were trained too long."""
    grid_HW = torch.zeros(batch.source_rt_B3HW.shape[2:])
    grid_HW[::2, ::2] = 0.4
    return _edited(batch, (_target(batch) + grid_HW).clamp(-1, 1))


BEHAVIOURS: dict[str, Callable[[RewardBatch], RewardBatch]] = {
    f.__name__: f
    for f in (
        truth,
        copy_source,
        paint_everything,
        paint_nothing,
        paint_elsewhere,
        leak_paint,
        saturate,
        whiten,
        add_grid,
    )
}
"""By name: the same samples, with other images drawn. All need samples with targets (RewardError)."""


def _target(batch: RewardBatch) -> Tensor:
    if batch.target_rt_B3HW is None:
        raise RewardError("planted behaviours are variations of the target, and these samples have none")
    return batch.target_rt_B3HW.float()


def _styles(batch: RewardBatch) -> list[PaintStyle]:
    return [sample.paint for sample in batch.samples]


def _edited(batch: RewardBatch, edit_B3HW: Tensor) -> RewardBatch:
    true = with_truth(batch)
    return replace(true, images=true.images | {"x_edit": edit_B3HW})


def _reasoned(batch: RewardBatch, mask_BHW: Tensor) -> RewardBatch:
    styles: list[PaintStyle] = ["mask"] * len(mask_BHW)
    painted_B3HW = overlay.paint(batch.source_rt_B3HW.float(), mask_BHW, styles)
    true = with_truth(batch)
    return replace(true, images=true.images | {"x_cot": painted_B3HW})
