"""What is logged to notice reward hacking, and never rewarded.

Each function gives one value per chain. They are read against each other and over time: a mean reward that
rises while `unedited` rises with it, while the paint grows, leaks into the edit or the images get noisier, is
not progress.

Dimension legend: B chains, H W pixels. Images are float in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from gvcot import overlay
from gvcot.errors import RewardError
from gvcot.types import PaintStyle, RewardResult
from rewards.base import Reward, RewardBatch
from rewards.fidelity import mean_inside
from rewards.localization import mask_iou
from rewards.mix import score_all


def with_unedited(batch: RewardBatch) -> RewardBatch:
    """The same chains, had each handed back the source for its edit; their reasoning images stay."""
    return replace(batch, images={**batch.images, "x_edit": batch.source_rt_B3HW})


def with_truth(batch: RewardBatch) -> RewardBatch:
    """The same chains, had each painted the true region and drawn the target: what rewards can reach at most.

    Raises:
        RewardError: the batch has no targets.
    """
    if batch.target_rt_B3HW is None:
        raise RewardError("canaries: the batch has no targets, so the best edit isn't known; skip with_truth")
    styles: list[PaintStyle] = [sample.paint for sample in batch.samples]
    painted_B3HW = overlay.paint(batch.source_rt_B3HW.float(), batch.mask_BHW(), styles)
    return replace(batch, images={"x_cot": painted_B3HW, "x_edit": batch.target_rt_B3HW})


def unedited(rewards: Mapping[str, Reward], batch: RewardBatch) -> dict[str, RewardResult]:
    """Each reward of the unedited source. Those of x_edit should stay below what the policy earns."""
    copied = with_unedited(batch)
    return score_all(rewards, copied)


def canaries(batch: RewardBatch) -> dict[str, Tensor]:
    """All canaries that the batch's images allow, by name, each fp32 (B,)."""
    values_B: dict[str, Tensor] = {}
    if "x_cot" in batch.images:
        values_B["area_ratio"] = area_ratio(batch)
    if "x_edit" in batch.images:
        values_B |= {
            "overlay_leak": overlay_leak(batch),
            "saturation": saturation(batch),
            "white": white(batch),
            "roughness": roughness(batch),
            "change_inside": change(batch, inside=True),
            "change_outside": change(batch, inside=False),
            "group_spread": group_spread(batch),
        }
    return values_B


def area_ratio(batch: RewardBatch) -> Tensor:
    """Painted area / true area; 1 is right, far above 1 is paint that claims everything."""
    painted_BHW = overlay.read(batch.image("x_cot"), batch.source_rt_B3HW.float())
    return mask_iou(painted_BHW, batch.mask_BHW())[1]["area_ratio"]


def overlay_leak(batch: RewardBatch) -> Tensor:
    """Share of the edit's pixels that look painted though the target's don't: coverage >= 0.5, and a blend of
    source and magenta indeed (residual <= 0.25; a brighter pixel is covered a little too)."""
    source_B3HW = batch.source_rt_B3HW.float()
    painted_BHW = _looks_painted(batch.image("x_edit"), source_B3HW)
    if batch.target_rt_B3HW is not None:
        has_target_B = torch.tensor(
            [s.target_HW3 is not None for s in batch.samples], device=painted_BHW.device
        )
        wanted_BHW = _looks_painted(batch.target_rt_B3HW.float(), source_B3HW)
        painted_BHW = painted_BHW & ~(wanted_BHW & has_target_B[:, None, None])
    return painted_BHW.float().mean(dim=(1, 2))


def saturation(batch: RewardBatch) -> Tensor:
    """Share of the edit's values within 1% of black or full, less that of the source."""
    return _share_saturated(batch.image("x_edit")) - _share_saturated(batch.source_rt_B3HW.float())


def white(batch: RewardBatch) -> Tensor:
    """Share of nearly white pixels in the edit, less that of the source."""
    return _share_white(batch.image("x_edit")) - _share_white(batch.source_rt_B3HW.float())


def roughness(batch: RewardBatch) -> Tensor:
    """Mean difference of neighbouring pixels in the edit, over that of the source; grids and noise raise
    it."""
    return _gradient(batch.image("x_edit")) / _gradient(batch.source_rt_B3HW.float()).clamp_min(1e-3)


def change(batch: RewardBatch, *, inside: bool) -> Tensor:
    """Mean absolute change from the source inside or outside the change mask, as a share of the pixel range;
    0 where there is no such pixel or the change mask is unknown."""
    change_BHW, known_B = batch.change_mask_BHW()
    error_B3HW = (batch.image("x_edit") - batch.source_rt_B3HW.float()).abs() / 2
    return mean_inside(error_B3HW, change_BHW if inside else ~change_BHW) * known_B


def group_spread(batch: RewardBatch) -> Tensor:
    """Standard deviation of a pixel over a group's edits, averaged over the image; every chain of a group
    gets its group's value. Near 0, the group has collapsed to one image."""
    edit_BX = batch.image("x_edit").flatten(1)
    _, index_B, count_P = torch.unique(
        batch.group_B.to(edit_BX.device), return_inverse=True, return_counts=True
    )
    sums_PX = edit_BX.new_zeros(len(count_P), edit_BX.shape[1])
    mean_PX = sums_PX.index_add(0, index_B, edit_BX) / count_P[:, None]
    variance_PX = sums_PX.index_add(0, index_B, (edit_BX - mean_PX[index_B]).square()) / count_P[:, None]
    return variance_PX.sqrt().mean(dim=1)[index_B]


def _looks_painted(image_B3HW: Tensor, source_B3HW: Tensor) -> Tensor:
    c_BHW = overlay.coverage(image_B3HW, source_B3HW)
    return (c_BHW >= 0.5) & (overlay.residual(image_B3HW, source_B3HW, c_BHW) <= 0.25)


def _share_saturated(image_B3HW: Tensor) -> Tensor:
    return (image_B3HW.abs() >= 0.98).float().mean(dim=(1, 2, 3))


def _share_white(image_B3HW: Tensor) -> Tensor:
    return (image_B3HW.amin(dim=1) >= 0.95).float().mean(dim=(1, 2))


def _gradient(image_B3HW: Tensor) -> Tensor:
    across_B = image_B3HW.diff(dim=3).abs().mean(dim=(1, 2, 3))
    down_B = image_B3HW.diff(dim=2).abs().mean(dim=(1, 2, 3))
    return (across_B + down_B) / 2
