"""Rewards of the edited image, measured against known pixels.

All compare with codec round trips, so the codec's own loss is never taken for the policy's. All use the
*ground-truth* change mask, never the painted region: that one could be enlarged at will.

Dimension legend: B chains, H W pixels. Images are float in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from gvcot.errors import ConfigError
from gvcot.types import RewardResult
from rewards.base import Reward, RewardBatch, result

MAX_PSNR_DB = 60.0
"""Logged PSNR is capped here, so that a perfect copy stays finite."""


class EditAccuracy(Reward):
    """How far the edit went from the source to the target, inside the change mask, in [-1, 1].

    With E(a, b) the mean absolute error over the change mask's pixels and RGB:

        score = (E(source, target) - E(edit, target)) / (E(source, target) + E(edit, target))

    1 for the target itself, 0 for the unedited source, negative for an edit that is worse than none. It is
    bounded on both sides however small the change is, and graded all the way (a plain ratio clipped at 0
    can't tell a wrong edit from no edit). Absolute rather than squared error: the best hedge between two
    candidate edits is then one of them, not their blend.

    Missing where target or change mask is unknown, or where source and target differ by less than
    `min_change` inside it. Parts: `error` E(edit, target) and `source_error` E(source, target), as a share of
    the pixel range.
    """

    name = "edit_accuracy"
    requires = frozenset({"x_edit", "target", "change_mask"})
    reaches = "x_edit"

    def __init__(self, min_change: float = 0.004) -> None:
        """`min_change`: smallest E(source, target) that counts as a change, as a share of the pixel range
        (0.004 is one of 255 levels).

        Raises:
            ConfigError: min_change is not positive.
        """
        if not min_change > 0:
            raise ConfigError(f"reward {self.name}: min_change is {min_change}, expected a number > 0")
        self.min_change = min_change

    def score(self, batch: RewardBatch) -> RewardResult:
        # None where no sample of this batch has one; then no score is valid.
        target_B3HW = (batch.source_rt_B3HW if batch.target_rt_B3HW is None else batch.target_rt_B3HW).float()
        change_BHW, known_B = batch.change_mask_BHW()
        has_target_B = known_B.new_tensor([sample.target_HW3 is not None for sample in batch.samples])
        error_B = mean_inside((batch.image("x_edit") - target_B3HW).abs_(), change_BHW) / 2
        change_B = mean_inside((batch.source_rt_B3HW.float() - target_B3HW).abs_(), change_BHW) / 2
        valid_B = known_B & has_target_B & (change_B >= self.min_change)
        raw_B = (change_B - error_B) / (change_B + error_B).clamp_min(self.min_change)
        return result(raw_B, valid_B, error=error_B, source_error=change_B)


class Preservation(Reward):
    """How well everything outside the change mask was left alone, in (0, 1].

        score = exp(-rmse / tau)

    with the root mean squared error over outside pixels and RGB against the source's round trip, as a share
    of the pixel range. With tau = 0.1: PSNR 20 dB -> 0.37, 25 dB -> 0.57, 30 dB -> 0.73, 35 dB -> 0.84,
    identity -> 1. Squared error, because harm to one bystander should weigh more than a faint change
    everywhere.

    Missing where the change mask is unknown or covers the whole image. Part: `psnr_db` (capped at 60).
    """

    name = "preservation"
    requires = frozenset({"x_edit", "change_mask"})
    reaches = "x_edit"

    def __init__(self, tau: float = 0.1) -> None:
        """`tau`: the rmse at which the score has fallen to 1/e, as a share of the pixel range.

        Raises:
            ConfigError: tau is not positive.
        """
        if not tau > 0:
            raise ConfigError(f"reward {self.name}: tau is {tau}, expected a number > 0")
        self.tau = tau

    def score(self, batch: RewardBatch) -> RewardResult:
        outside_BHW, valid_B = outside(batch)
        rmse_B = rmse_inside(batch.image("x_edit"), batch.source_rt_B3HW.float(), outside_BHW)
        return result(torch.exp(-rmse_B / self.tau), valid_B, psnr_db=psnr_db(rmse_B))


def outside(batch: RewardBatch) -> tuple[Tensor, Tensor]:
    """bool (B, H, W) where nothing may change, and bool (B,) whether that is known and anywhere."""
    change_BHW, known_B = batch.change_mask_BHW()
    return ~change_BHW, known_B & ~change_BHW.flatten(1).all(dim=1)


def rmse_inside(one_B3HW: Tensor, other_B3HW: Tensor, mask_BHW: Tensor) -> Tensor:
    """fp32 (B,) root mean squared error over the masked pixels and RGB, as a share of the pixel range."""
    return mean_inside((one_B3HW - other_B3HW).square_(), mask_BHW).sqrt() / 2


def psnr_db(rmse_B: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of errors as a share of the pixel range, at most MAX_PSNR_DB."""
    return -20 * rmse_B.clamp_min(10 ** (-MAX_PSNR_DB / 20)).log10()


def mean_inside(value_B3HW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Mean over the masked pixels and RGB; 0 where the mask is empty."""
    weight_BX1 = mask_BHW.flatten(1)[:, :, None].to(value_B3HW.dtype)
    sum_B = (value_B3HW.flatten(2) @ weight_BX1).sum(dim=(1, 2))
    return sum_B / (3 * weight_BX1.sum(dim=(1, 2))).clamp_min(1)
