"""Rewards of the reasoning image: does it mark the right region, and can it be read at all?

Dimension legend: B chains, H W pixels. Images are float in [-1, 1].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from gvcot import overlay
from gvcot.errors import ConfigError
from gvcot.types import RewardResult
from rewards.base import Reward, RewardBatch, result


class MaskIoU(Reward):
    """Intersection over union of the painted region with the true one, in [0, 1].

    Both empty: 1. One empty: 0. Parts: `precision` (1 for empty paint on an empty truth, 0 for empty paint on
    any other), `recall` (likewise, by the truth) and `area_ratio` (painted / true area; an empty truth counts
    as one pixel, both empty give 1).
    """

    name = "mask_iou"
    requires = frozenset({"x_cot", "mask"})
    reaches = "x_cot"

    def __init__(self, threshold: float = 0.5, min_area: int = overlay.MIN_AREA) -> None:
        """`threshold` and `min_area` as in `gvcot.overlay.read`.

        Raises:
            ConfigError: a threshold outside (0, 1], or a negative area.
        """
        _check_threshold(self.name, "threshold", threshold)
        if min_area < 0:
            raise ConfigError(f"reward {self.name}: min_area is {min_area}, expected a number of pixels >= 0")
        self.threshold = threshold
        self.min_area = min_area

    def score(self, batch: RewardBatch) -> RewardResult:
        source_B3HW = batch.source_rt_B3HW.float()
        painted_BHW = overlay.read(batch.image("x_cot"), source_B3HW, self.threshold, min_area=self.min_area)
        iou_B, areas = mask_iou(painted_BHW, batch.mask_BHW())
        return result(iou_B, **areas)


class SoftDice(Reward):
    """Dice overlap of the painted *coverage* with the true region, in [0, 1]: 2 sum(c m) / (sum c + sum m).

    c rises linearly from 0 at coverage 0.15 to 1 at coverage 0.85, uncleaned: without the floor, faint noise
    over a large background would outweigh a small region. Unlike IoU it is graded while the paint is still
    too faint or too scattered to be read as a mask. Both empty: 1.
    """

    name = "soft_dice"
    requires = frozenset({"x_cot", "mask"})
    reaches = "x_cot"

    def score(self, batch: RewardBatch) -> RewardResult:
        source_B3HW = batch.source_rt_B3HW.float()
        c_BHW = ((overlay.coverage(batch.image("x_cot"), source_B3HW) - 0.15) / 0.7).clamp(0.0, 1.0)
        m_BHW = batch.mask_BHW().float()
        total_B = c_BHW.sum(dim=(1, 2)) + m_BHW.sum(dim=(1, 2))
        dice_B = 2 * (c_BHW * m_BHW).sum(dim=(1, 2)) / total_B.clamp_min(1e-6)
        return result(torch.where(total_B > 0, dice_B, torch.ones_like(dice_B)))


class Format(Reward):
    """Readability of the reasoning image, in [0, 1]: the source with clearly painted regions, nothing else.

    With coverage c, clipped to [0, 1 / ALPHA], and residual e, the rms over RGB of
    r - s - c ALPHA (MAGENTA - s), a pixel is *readable* when c <= margin or c >= 1 - margin, and
    e <= tolerance.

        score = share of readable pixels * share of readable pixels among those with c > margin

    and 0 where fewer than `gvcot.overlay.MIN_AREA` pixels or more than `max_area` of the image are painted.
    It doesn't know which region is the right one. Parts: the two shares, `readable` and `paint_readable`.
    """

    name = "format"
    requires = frozenset({"x_cot"})
    reaches = "x_cot"

    def __init__(self, margin: float = 0.3, tolerance: float = 0.25, max_area: float = 0.98) -> None:
        """Set how strict the reward is.

        Args:
            margin: how far coverage may be from 0 or 1.
            tolerance: largest readable residual, in [-1, 1] pixel units (0.25 is 32 of 255 levels).
            max_area: share of the image above which paint no longer marks a region.

        Raises:
            ConfigError: a margin or area outside (0, 1], a tolerance that is not positive.
        """
        _check_threshold(self.name, "margin", margin)
        _check_threshold(self.name, "max_area", max_area)
        if not tolerance > 0:
            raise ConfigError(f"reward {self.name}: tolerance is {tolerance}, expected a number > 0")
        self.margin = margin
        self.tolerance = tolerance
        self.max_area = max_area

    def score(self, batch: RewardBatch) -> RewardResult:
        drawn_B3HW, source_B3HW = batch.image("x_cot"), batch.source_rt_B3HW.float()
        c_BHW = overlay.coverage(drawn_B3HW, source_B3HW).clamp_max(1.0 / overlay.ALPHA)
        residual_BHW = overlay.residual(drawn_B3HW, source_B3HW, c_BHW)
        touched_BHW = c_BHW > self.margin
        readable_BHW = (~touched_BHW | (c_BHW >= 1 - self.margin)) & (residual_BHW <= self.tolerance)
        share_B = readable_BHW.float().mean(dim=(1, 2))
        num_touched_B = touched_BHW.sum(dim=(1, 2))
        paint_share_B = (readable_BHW & touched_BHW).sum(dim=(1, 2)) / num_touched_B.clamp_min(1)
        painted_B = (c_BHW >= 0.5).sum(dim=(1, 2))
        marks_region_B = (painted_B >= overlay.MIN_AREA) & (painted_B <= self.max_area * c_BHW[0].numel())
        return result(
            share_B * paint_share_B * marks_region_B, readable=share_B, paint_readable=paint_share_B
        )


def mask_iou(painted_BHW: Tensor, true_BHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """IoU of mask pairs on their run-length codes, with precision, recall and area ratio.

    Args:
        painted_BHW, true_BHW: bool masks.

    Returns:
        fp32 (B,) IoU, and the parts of `MaskIoU`. Edge cases are those of `MaskIoU`.
    """
    painted, true = _encode(painted_BHW), _encode(true_BHW)
    both = [rle.merge([p, t], intersect=True) for p, t in zip(painted, true, strict=True)]
    painted_B, true_B, both_B = _areas(painted), _areas(true), _areas(both)
    union_B = painted_B + true_B - both_B
    both_empty_B = (union_B == 0).astype(np.float64)

    def share(count_B: np.ndarray) -> np.ndarray:
        return np.where(count_B > 0, both_B / np.maximum(count_B, 1), both_empty_B)

    values = {
        "iou": share(union_B),
        "precision": share(painted_B),
        "recall": share(true_B),
        "area_ratio": np.where(union_B > 0, painted_B / np.maximum(true_B, 1), 1.0),
    }
    parts = {name: torch.from_numpy(v).float().to(painted_BHW.device) for name, v in values.items()}
    return parts.pop("iou"), parts


def _areas(codes: Any) -> np.ndarray:
    return np.asarray(rle.area(codes), dtype=np.float64)


def _encode(mask_BHW: Tensor) -> Any:
    """Run-length codes; pycocotools wants uint8 (H, W, B) in Fortran order."""
    mask_HWB = mask_BHW.cpu().numpy().astype(np.uint8).transpose(1, 2, 0)
    return rle.encode(np.asfortranarray(mask_HWB))


def _check_threshold(reward: str, option: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ConfigError(f"reward {reward}: {option} is {value}, expected a number in (0, 1]")
