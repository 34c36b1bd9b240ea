"""Group-relative advantages per reward component, and their combination.

Legend: B chains, R reward components. `group_B` names the group (prompt) of each chain.

Each component is normalised on its own before components are weighted and summed (GDPO, arXiv:2601.05242), so
that a component of large spread can't drown the others. Statistics are taken in fp64 over *valid* scores
only; a missing score never counts as 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gvcot.errors import RewardError

StdKind = Literal["group", "batch", "none"]


class Advantages(NamedTuple):
    """What `group_advantage` returns."""

    advantage_BR: Tensor
    """fp32; exactly 0 where not kept."""

    kept_BR: Tensor
    """bool; False for missing scores and for whole groups without a signal."""

    zero_std_fraction_R: Tensor
    """fp32 (R,), the share of the groups that carry no signal."""


class _GroupStats(NamedTuple):
    count_MR: Tensor
    mean_MR: Tensor
    std_MR: Tensor


def group_advantage(
    reward_BR: Float[Tensor, "B R"],
    valid_BR: Bool[Tensor, "B R"],
    group_B: Int[Tensor, " B"],
    *,
    std: StdKind,
    std_floor: float,
    clamp: float = 5.0,
    zero_tol: float = 1e-6,
) -> Advantages:
    """Centre each component within its group and divide by a standard deviation:

        A_ir = clamp((r_ir - mean_group) / max(std_r, std_floor), -clamp, clamp)

    Args:
        reward_BR: raw scores; anything, also NaN, where not valid.
        valid_BR: which scores exist.
        group_B: group of each chain; members need not be adjacent.
        std: "group" (GRPO), "batch" (over all valid scores of the component), or "none" (Dr. GRPO).
            Standard deviations have the n - 1 denominator.
        std_floor: smallest divisor; keeps a nearly constant group from being blown up to unit size.
        clamp: largest absolute advantage.
        zero_tol: groups whose standard deviation is below this have no signal: advantage 0, not kept. So do
            groups with fewer than two valid scores.

    Raises:
        RewardError: if a score that is marked valid is not finite.
    """
    if not torch.isfinite(reward_BR[valid_BR]).all():
        raise RewardError(
            "a score marked valid is NaN or infinite; a reward must mark such scores as missing (valid False)"
        )
    score_BR = torch.where(valid_BR, reward_BR, 0).double()
    _, index_B = torch.unique(group_B, return_inverse=True)
    stats = _group_stats(score_BR, valid_BR, index_B)
    signal_MR = (stats.count_MR >= 2) & (stats.std_MR > zero_tol)
    kept_BR = valid_BR & signal_MR[index_B]
    _, batch_std_R = masked_mean_std(score_BR, valid_BR)

    centred_BR = score_BR - stats.mean_MR[index_B]
    match std:
        case "group":
            centred_BR = centred_BR / stats.std_MR[index_B].clamp_min(std_floor)
        case "batch":
            centred_BR = centred_BR / batch_std_R.clamp_min(std_floor)
        case "none":
            pass
    advantage_BR = torch.where(kept_BR, centred_BR.clamp(-clamp, clamp), 0).to(torch.float32)
    return Advantages(advantage_BR, kept_BR, 1 - signal_MR.float().mean(0))


def combine(
    advantage_BR: Float[Tensor, "B R"],
    kept_BR: Bool[Tensor, "B R"],
    weights_R: Float[Tensor, " R"],
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
    """Weighted sum of the components' advantages: A_i = sum_r w_r A_ir.

    A chain is kept if any component of non-zero weight is kept; the others contribute 0.

    Args:
        advantage_BR, kept_BR: from `group_advantage`.
        weights_R: 0 for components that are only monitored.
    """
    kept_B = (kept_BR & (weights_R != 0)).any(dim=1)
    advantage_B = (torch.where(kept_BR, advantage_BR, 0) * weights_R.to(advantage_BR.dtype)).sum(dim=1)
    return torch.where(kept_B, advantage_B, 0), kept_B


def whitened(advantage_B: Float[Tensor, " B"], kept_B: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Mean 0 and standard deviation 1 over the kept chains of the batch (GDPO's last step), so that the sum
    doesn't grow with the number of components; 0 where not kept."""
    mean, std = masked_mean_std(advantage_B.double()[:, None], kept_B[:, None])
    white_B = ((advantage_B - mean) / std.clamp_min(1e-6)).to(advantage_B.dtype)
    return torch.where(kept_B, white_B, 0)


def _group_stats(score_BR: Tensor, valid_BR: Tensor, index_B: Tensor) -> _GroupStats:
    """Count, mean and sample standard deviation over the valid members of each of the M groups."""
    num_groups = int(index_B.max()) + 1 if index_B.numel() else 0
    zeros_MR = score_BR.new_zeros(num_groups, score_BR.shape[1])
    count_MR = zeros_MR.index_add(0, index_B, valid_BR.to(score_BR.dtype))
    mean_MR = zeros_MR.index_add(0, index_B, score_BR) / count_MR.clamp_min(1)
    square_BR = torch.where(valid_BR, score_BR - mean_MR[index_B], 0).square()
    variance_MR = zeros_MR.index_add(0, index_B, square_BR) / (count_MR - 1).clamp_min(1)
    return _GroupStats(count_MR, mean_MR, variance_MR.sqrt())


def masked_mean_std(value_BR: Tensor, mask_BR: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation of each column over its unmasked rows; 0 where there are too few."""
    count_R = mask_BR.sum(0)
    mean_R = torch.where(mask_BR, value_BR, 0).sum(0) / count_R.clamp_min(1)
    variance_R = torch.where(mask_BR, value_BR - mean_R, 0).square().sum(0) / (count_R - 1).clamp_min(1)
    return mean_R, variance_R.sqrt()
