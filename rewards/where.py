"""Metrics that tell causes apart: is the right thing changed, what becomes of it, and is it what was painted?

The first two ask nothing of a reasoning image, so every chain has them. All compare with the codec's round
trip of the source, so the codec's own error is not taken for a change.

Legend: B chains, K things of a scene, H W pixels. Images are float in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gvcot import overlay
from gvcot.errors import ConfigError
from gvcot.types import EditSample, RewardResult
from rewards.base import Reward, RewardBatch, result
from rewards.fidelity import EditAccuracy
from rewards.localization import mask_iou

KEEPING_TASKS = frozenset({"extraction"})
"""Tasks whose edit changes everything but what it means."""


class Where(Reward):
    """1 if the edit changed the right things, else 0.

    Each thing of the source has a change: the mean absolute difference of edit and source over its silhouette
    and RGB. Every referent has to have changed more than everything else (for an extraction: less). Equal
    changes decide nothing, so the unedited source scores 0.

    Missing where the instruction means no thing of the source (the place of an insertion, a wall), where
    things are unknown, and where there is nothing but referents. Parts: `change`, the mean change of the
    referents as a share of the pixel range, and `chance`, the score of an edit that changes things at random.
    """

    name = "where"
    requires = frozenset({"x_edit", "things"})
    reaches = "x_edit"

    def score(self, batch: RewardBatch) -> RewardResult:
        rows = [score_where(s, change_K) for s, change_K in zip(batch.samples, changes(batch), strict=True)]
        raw_B, valid_B, change_B, chance_B = batch.source_rt_B3HW.new_tensor(rows).float().unbind(1)
        return result(raw_B, valid_B > 0, change=change_B, chance=chance_B)


class WhatGivenWhere(Reward):
    """`edit_accuracy` of the edits that changed the right thing, in [-1, 1].

    Missing where `where` or `edit_accuracy` is missing, and where `where` is 0: a wrong place says nothing
    of how well the edit was drawn.
    """

    name = "what_given_where"
    requires = Where.requires | EditAccuracy.requires
    reaches = "x_edit"

    def __init__(self) -> None:
        self._where, self._what = Where(), EditAccuracy()

    def score(self, batch: RewardBatch) -> RewardResult:
        where, what = self._where.score(batch), self._what.score(batch)
        return result(what.raw_B, where.valid_B & (where.raw_B > 0) & what.valid_B)


class XCotChangeIoU(Reward):
    """Intersection over union of the region read from x_cot with the region that the edit changed, in [0, 1].

    A pixel has changed when its largest difference over RGB is at least `threshold` of the pixel range;
    specks are dropped and holes filled as in `gvcot.overlay.read`. The truth itself doesn't reach 1 for every
    task: a moved thing changes its new place too, an insertion's box is larger than the thing.

    Missing where neither region has a pixel, and for extractions, which change all but what is painted.
    Parts: `painted` and `changed`, their shares of the image.
    """

    name = "x_cot_change_iou"
    requires = frozenset({"x_cot", "x_edit"})
    reaches = "x_edit"

    def __init__(self, threshold: float = 0.1) -> None:
        """`threshold`: smallest change of a changed pixel, as a share of the pixel range (0.1: 26 levels).

        Raises:
            ConfigError: a threshold outside (0, 1].
        """
        if not 0 < threshold <= 1:
            raise ConfigError(f"reward {self.name}: threshold is {threshold}, expected a number in (0, 1]")
        self.threshold = threshold

    def score(self, batch: RewardBatch) -> RewardResult:
        source_B3HW = batch.source_rt_B3HW.float()
        painted_BHW = overlay.read(batch.image("x_cot"), source_B3HW)
        difference_BHW = (batch.image("x_edit") - source_B3HW).abs().amax(dim=1) / 2
        changed_BHW = overlay.clean(difference_BHW >= self.threshold)
        iou_B, _ = mask_iou(painted_BHW, changed_BHW)
        valid_B = (painted_BHW | changed_BHW).flatten(1).any(dim=1)
        valid_B &= valid_B.new_tensor([s.task not in KEEPING_TASKS for s in batch.samples])
        shares = (mask_BHW.float().mean(dim=(1, 2)) for mask_BHW in (painted_BHW, changed_BHW))
        return result(iou_B, valid_B, **dict(zip(("painted", "changed"), shares, strict=True)))


def score_where(sample: EditSample, change_K: Tensor) -> tuple[float, float, float, float]:
    """(score, whether it is valid, mean change of the referents, chance) of `Where` for one chain."""
    num_things, num_meant = len(sample.things), len(sample.referents)
    if not 0 < num_meant < num_things:
        return 0.0, 0.0, 0.0, 0.0
    is_meant_K = torch.zeros(num_things, dtype=torch.bool, device=change_K.device)
    is_meant_K[list(sample.referents)] = True
    order_K = -change_K if sample.task in KEEPING_TASKS else change_K
    right = bool(order_K[is_meant_K].min() > order_K[~is_meant_K].max())
    return float(right), 1.0, change_K[is_meant_K].mean().item(), 1 / math.comb(num_things, num_meant)


def changes(batch: RewardBatch) -> list[Tensor]:
    """fp32 (K,) per chain: the mean change of each thing of its scene, as a share of the pixel range."""
    difference_B3HW = (batch.image("x_edit") - batch.source_rt_B3HW.float()).abs() / 2
    difference_BX = difference_B3HW.mean(dim=1).flatten(1)
    out = []
    for sample, difference_X in zip(batch.samples, difference_BX, strict=True):
        mask_KX = silhouettes(sample, difference_X)
        out.append((mask_KX @ difference_X) / mask_KX.sum(dim=1).clamp_min(1))
    return out


def silhouettes(sample: EditSample, like_X: Tensor) -> Tensor:
    """fp32 (K, H * W): 1 inside each thing; (0, H * W) where there are none."""
    masks: Sequence[np.ndarray] = [thing.mask_HW.ravel() for thing in sample.things]
    mask_KX = np.stack(masks) if masks else np.zeros((0, len(like_X)), dtype=bool)
    return torch.from_numpy(mask_KX).to(like_X)
