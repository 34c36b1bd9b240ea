"""Rewards of the reasoning image: does it mark the right region, and can it be read at all?

Dimension legend: B chains, H W pixels. Images are float in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gvcot import overlay
from gvcot.errors import ConfigError, closest
from gvcot.types import RewardResult
from rewards.base import Reward, RewardBatch, result


class RegionReward(Reward):
    """What rewards of the painted region have in common: how paint is read, and which regions have no place.

    A true region that covers (nearly) the whole image, as that of a global edit, can't be localised: its
    score is missing.
    """

    requires = frozenset({"x_cot", "mask"})
    reaches = "x_cot"

    def __init__(
        self,
        threshold: float = 0.5,
        min_area: int = overlay.MIN_AREA,
        global_share: float | None = 0.98,
    ) -> None:
        """Set how paint is read.

        Args:
            threshold, min_area: as in `gvcot.overlay.read`.
            global_share: share of the image from which on a true region is everywhere; None: none is.

        Raises:
            ConfigError: a threshold or share outside (0, 1], or a negative area.
        """
        _check_share(self.name, "threshold", threshold)
        if min_area < 0:
            raise ConfigError(f"reward {self.name}: min_area is {min_area}, expected a number of pixels >= 0")
        if global_share is not None:
            _check_share(self.name, "global_share", global_share)
        self.threshold = threshold
        self.min_area = min_area
        self.global_share = global_share

    def painted_BHW(self, batch: RewardBatch) -> Tensor:
        """bool (B, H, W): the region that each reasoning image shows."""
        source_B3HW = batch.source_rt_B3HW.float()
        return overlay.read(batch.image("x_cot"), source_B3HW, self.threshold, min_area=self.min_area)

    def has_place_B(self, true_BHW: Tensor) -> Tensor:
        """`has_place_B` by the reward's own `global_share`."""
        return has_place_B(true_BHW, self.global_share)


class MaskIoU(RegionReward):
    """Intersection over union of the painted region with the true one, in [0, 1].

    Both empty: 1. One empty: 0. Parts: `precision` (1 for empty paint on an empty truth, 0 for empty paint on
    any other), `recall` (likewise, by the truth) and `area_ratio` (painted / true area; an empty truth counts
    as one pixel, both empty give 1).

    With a `fallback`, groups of which no chain paints anything that can be read are graded by their faint
    paint instead of all scoring 0: `fallback_scale` times `soft_dice` or `boundary`. Groups where one chain
    is read keep the plain IoU, so unreadable paint never beats overlap within its group. Part `fallback`: 1
    where it was used.
    """

    name = "mask_iou"

    def __init__(
        self,
        threshold: float = 0.5,
        min_area: int = overlay.MIN_AREA,
        global_share: float | None = 0.98,
        fallback: str = "none",
        fallback_scale: float = 0.1,
    ) -> None:
        """Set how paint is read, and what becomes of groups without any.

        Args:
            threshold, min_area, global_share: as in `RegionReward`.
            fallback: "none", "soft_dice" or "boundary".
            fallback_scale: the greatest score that the fallback gives.

        Raises:
            ConfigError: as in `RegionReward`; an unknown fallback, a scale outside (0, 1].
        """
        super().__init__(threshold, min_area, global_share)
        known = ("none", *FALLBACKS)
        if fallback not in known:
            raise ConfigError(
                f"reward {self.name}: unknown fallback {fallback!r}; {closest(fallback, known)}"
            )
        _check_share(self.name, "fallback_scale", fallback_scale)
        self.fallback = fallback
        self.fallback_scale = fallback_scale

    def score(self, batch: RewardBatch) -> RewardResult:
        painted_BHW, true_BHW = self.painted_BHW(batch), batch.mask_BHW()
        iou_B, parts = mask_iou(painted_BHW, true_BHW)
        if self.fallback != "none":
            unread_B = unread_groups(painted_BHW, batch.group_B) & true_BHW.flatten(1).any(dim=1)
            if unread_B.any():
                graded = FALLBACKS[self.fallback](soft_coverage(batch)[unread_B], true_BHW[unread_B])
                iou_B[unread_B] = self.fallback_scale * graded
            parts["fallback"] = unread_B
        return result(iou_B, self.has_place_B(true_BHW), **parts)


class BoxIoU(RegionReward):
    """Intersection over union of the painted region's bounding box with the true region's, in [0, 1].

    Asks where and how large, not of what outline. Regions of several parts have one box around all of them;
    there `multi_region` says more. Both empty: 1. One empty: 0.
    """

    name = "box_iou"

    def score(self, batch: RewardBatch) -> RewardResult:
        true_BHW = batch.mask_BHW()
        return result(box_iou(self.painted_BHW(batch), true_BHW), self.has_place_B(true_BHW))


class MultiRegion(RegionReward):
    """How well each of several regions is painted as one of its own, in [0, 1].

    Painted and true parts are matched one to one so that the sum of their IoUs is greatest (the Hungarian
    method):

        score = sum of the matched IoUs / max(number of painted parts, number of true parts)

    so what is missed and what is painted beside lowers the score alike. Parts are connected (8 neighbours)
    and of at least `min_area` pixels, in paint and truth alike. The true parts are thus `EditSample.regions`
    as paint can show them: regions that touch are one, and the truth, painted, scores 1.

    Both empty: 1. One empty: 0. Missing where the true region has pixels, but no part that can be read.
    Parts: `painted_parts` and `true_parts`, their numbers.
    """

    name = "multi_region"

    def score(self, batch: RewardBatch) -> RewardResult:
        painted_BHW, mask_BHW = self.painted_BHW(batch), batch.mask_BHW()
        true_BHW = overlay.clean(mask_BHW, self.min_area)
        score_B, painted_B, true_B = multi_region(painted_BHW, true_BHW)
        is_read_B = true_BHW.flatten(1).any(dim=1) | ~mask_BHW.flatten(1).any(dim=1)
        valid_B = self.has_place_B(mask_BHW) & is_read_B
        return result(score_B, valid_B, painted_parts=painted_B, true_parts=true_B)


class SoftDice(Reward):
    """Dice overlap of the painted *coverage* with the true region, in [0, 1]: 2 sum(c m) / (sum c + sum m).

    c rises linearly from 0 at coverage 0.15 to 1 at coverage 0.85, uncleaned: without the floor, faint noise
    over a large background would outweigh a small region. Unlike IoU it is graded while the paint is still
    too faint or too scattered to be read as a mask. Both empty: 1. Missing where the true region is (nearly)
    the whole image.
    """

    name = "soft_dice"
    requires = frozenset({"x_cot", "mask"})
    reaches = "x_cot"

    def __init__(self, global_share: float | None = 0.98) -> None:
        """
        Args:
            global_share: as in `RegionReward`.

        Raises:
            ConfigError: a share outside (0, 1].
        """
        if global_share is not None:
            _check_share(self.name, "global_share", global_share)
        self.global_share = global_share

    def score(self, batch: RewardBatch) -> RewardResult:
        true_BHW = batch.mask_BHW()
        return result(soft_dice(soft_coverage(batch), true_BHW), has_place_B(true_BHW, self.global_share))


class Format(Reward):
    """Readability of the reasoning image, in [0, 1]: the source with clearly painted regions, nothing else.

    With coverage c, clipped to [0, 1 / ALPHA], and residual e, the rms over RGB of
    r - s - c ALPHA (MAGENTA - s), a pixel is *readable* when c <= margin or c >= 1 - margin, and
    e <= tolerance.

        score = share of readable pixels * share of readable pixels among those with c > margin

    and 0 where fewer than `gvcot.overlay.MIN_AREA` pixels or more than `max_area` of the image are painted.
    It doesn't ask which region is the right one, but its score is missing where that is more than `max_area`
    of the image: paint marks no region then. Parts: the two shares, `readable` and `paint_readable`.
    """

    name = "format"
    requires = frozenset({"x_cot", "mask"})
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
        _check_share(self.name, "margin", margin)
        _check_share(self.name, "max_area", max_area)
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
            share_B * paint_share_B * marks_region_B,
            has_place_B(batch.mask_BHW(), self.max_area),
            readable=share_B,
            paint_readable=paint_share_B,
        )


def has_place_B(true_BHW: Tensor, global_share: float | None) -> Tensor:
    """bool (B,): whether the true region is somewhere rather than everywhere.

    Args:
        true_BHW: bool masks.
        global_share: of the image, from which on a region is everywhere; None: none is.
    """
    share_B = true_BHW.float().mean(dim=(1, 2))
    return share_B < (math.inf if global_share is None else global_share)


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


def box_iou(painted_BHW: Tensor, true_BHW: Tensor) -> Tensor:
    """fp32 (B,) IoU of the bounding boxes of mask pairs; both empty: 1, one empty: 0."""
    low_BX, high_BX = _corners(painted_BHW)
    other_low_BX, other_high_BX = _corners(true_BHW)
    shared_BX = (np.minimum(high_BX, other_high_BX) - np.maximum(low_BX, other_low_BX)).clip(min=0)
    areas = [(high - low).prod(axis=1) for low, high in ((low_BX, high_BX), (other_low_BX, other_high_BX))]
    shared_B = shared_BX.prod(axis=1)
    union_B = areas[0] + areas[1] - shared_B
    iou_B = np.where(union_B > 0, shared_B / np.maximum(union_B, 1), 1.0)
    return torch.from_numpy(iou_B).float().to(painted_BHW.device)


def multi_region(painted_BHW: Tensor, true_BHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score of `MultiRegion`, and the numbers of painted and of true parts, each fp32 (B,).

    Args:
        painted_BHW, true_BHW: bool masks; each of their connected parts counts, however small.
    """
    pairs = zip(painted_BHW.cpu().numpy(), true_BHW.cpu().numpy(), strict=True)
    overlaps = [overlap_of_parts(painted_HW, true_HW) for painted_HW, true_HW in pairs]
    rows = [(matched_share(iou_IJ), *iou_IJ.shape) for iou_IJ in overlaps]
    score_B, painted_B, true_B = torch.tensor(rows, device=painted_BHW.device).float().unbind(1)
    return score_B, painted_B, true_B


def matched_share(iou_IJ: np.ndarray) -> float:
    """Greatest sum of IoUs over one-to-one matches of I with J parts, divided by max(I, J); 0 x 0: 1."""
    if not max(iou_IJ.shape):
        return 1.0
    rows, columns = linear_sum_assignment(iou_IJ, maximize=True)
    return float(iou_IJ[rows, columns].sum() / max(iou_IJ.shape))


def overlap_of_parts(one_HW: np.ndarray, other_HW: np.ndarray) -> np.ndarray:
    """float (I, J): IoU of each connected part of one mask with each of the other."""
    (label_HW, num), (other_label_HW, num_other) = _connected(one_HW), _connected(other_HW)
    pair_X = label_HW.ravel() * (num_other + 1) + other_label_HW.ravel()
    # Row and column 0 count the pixels outside all parts.
    count = np.bincount(pair_X, minlength=(num + 1) * (num_other + 1)).reshape(num + 1, num_other + 1)
    union = count.sum(axis=1, keepdims=True) + count.sum(axis=0, keepdims=True) - count
    return (count / np.maximum(union, 1))[1:, 1:]


def soft_coverage(batch: RewardBatch) -> Tensor:
    """fp32 (B, H, W): 0 up to coverage 0.15, rising linearly to 1 at coverage 0.85, not cleaned."""
    coverage_BHW = overlay.coverage(batch.image("x_cot"), batch.source_rt_B3HW.float())
    return ((coverage_BHW - 0.15) / 0.7).clamp(0.0, 1.0)


def soft_dice(c_BHW: Tensor, true_BHW: Tensor) -> Tensor:
    """2 sum(c m) / (sum c + sum m) over the pixels of each image, in [0, 1]; both empty: 1."""
    m_BHW = true_BHW.float()
    total_B = c_BHW.sum(dim=(1, 2)) + m_BHW.sum(dim=(1, 2))
    dice_B = 2 * (c_BHW * m_BHW).sum(dim=(1, 2)) / total_B.clamp_min(1e-6)
    return torch.where(total_B > 0, dice_B, torch.ones_like(dice_B))


def boundary(c_BHW: Tensor, true_BHW: Tensor) -> Tensor:
    """How near faint paint is to the true region, in [0, 1]: 1 - sum(c d) / (max(d) sum c).

    d is each pixel's distance to the region, 0 inside it, so paint that misses the region still is graded.
    No coverage: 0. No region: 0.

    Args:
        c_BHW: soft coverage in [0, 1].
        true_BHW: bool masks.
    """
    outside_BHW = ~true_BHW.cpu().numpy()
    d_BHW = c_BHW.new_tensor(np.array([ndimage.distance_transform_edt(m_HW) for m_HW in outside_BHW]))
    d_BHW = d_BHW / d_BHW.amax(dim=(1, 2), keepdim=True).clamp_min(1.0)
    painted_B = c_BHW.sum(dim=(1, 2))
    near_B = 1 - (c_BHW * d_BHW).sum(dim=(1, 2)) / painted_B.clamp_min(1e-6)
    return near_B * (painted_B > 0) * true_BHW.flatten(1).any(dim=1)


FALLBACKS: MappingProxyType[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"soft_dice": soft_dice, "boundary": boundary}
)
"""What grades the faint paint of groups that can't be read: (soft coverage, true masks) -> (B,) in [0, 1]."""


def unread_groups(painted_BHW: Tensor, group_B: Tensor) -> Tensor:
    """bool (B,): chains of groups of which no chain has a painted pixel."""
    group_B = group_B.to(painted_BHW.device)
    is_read_B = painted_BHW.flatten(1).any(dim=1)
    return ~torch.isin(group_B, group_B[is_read_B])


def _corners(mask_BHW: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(B, 2) upper left and (exclusive) lower right corner of each mask's bounding box; equal where empty."""
    xywh_B4 = rle.toBbox(_encode(mask_BHW))
    return xywh_B4[:, :2], xywh_B4[:, :2] + xywh_B4[:, 2:]


def _connected(mask_HW: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected parts (8 neighbours) numbered from 1, 0 elsewhere; and how many there are."""
    label_HW = np.zeros(mask_HW.shape, dtype=np.int64)
    ndimage.label(mask_HW, structure=np.ones((3, 3)), output=label_HW)
    return label_HW, int(label_HW.max())


def _areas(codes: Any) -> np.ndarray:
    # One by one: with numpy 2, pycocotools 2.0.11 refuses more than 255 codes at once.
    return np.array([rle.area(code) for code in codes], dtype=np.float64)


def _encode(mask_BHW: Tensor) -> Any:
    """Run-length codes; pycocotools wants uint8 (H, W, B) in Fortran order."""
    mask_HWB = mask_BHW.cpu().numpy().astype(np.uint8).transpose(1, 2, 0)
    return rle.encode(np.asfortranarray(mask_HWB))


def _check_share(reward: str, option: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ConfigError(f"reward {reward}: {option} is {value}, expected a number in (0, 1]")
