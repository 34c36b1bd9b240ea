"""GRPO-Guard (arXiv:2510.22319): a clipped surrogate whose ratio is centred and rescaled per noise level.

Legend: B chains, W steps of a phase's SDE window.

The plain ratio of mean log-probabilities has E[log r] = -KL < 0 under the old policy, so it leaves the clip
range on one side only, and its gradient on the velocity grows with sqrt|dt|. Guard adds the KL back,
multiplies by the step's std, and divides the loss by |dt|: at r = 1 the gradient on the velocity no longer
depends on the step size.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rl.losses.reduction import fraction, log_ratio, ratio_metrics


def grpo_guard(
    logprob_BW: Float[Tensor, "B W"],
    old_logprob_BW: Float[Tensor, "B W"],
    advantage_B: Float[Tensor, " B"],
    clip_range: float | tuple[float, float],
    mask_BW: Bool[Tensor, "B W"] | None = None,
    *,
    kl_old_BW: Float[Tensor, "B W"],
    std_BW: Float[Tensor, "B W"],
    dt_BW: Float[Tensor, "B W"],
) -> tuple[Float[Tensor, "B W"], dict[str, Tensor]]:
    """loss = max(-A rho, -A clip(rho, 1 - low, 1 + high)) / |dt|,  rho = exp[std (log r + KL_old)].

    Valid for the flow SDE, whose std is the transition's and includes sqrt|dt|.

    Args:
        logprob_BW, old_logprob_BW, advantage_B, clip_range, mask_BW: as in `grpo_clip`; clip ranges near
            2e-6.
        kl_old_BW: exact KL per value between the transitions of the trained and the sampling policy, with
            gradient (`rl.losses.kl.normal_kl`).
        std_BW: standard deviation of the transitions.
        dt_BW: step sizes in sigma, of either sign.

    Returns:
        As `grpo_clip`; the ratio metrics and clip fractions speak of rho.
    """
    low, high = clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
    log_ratio_BW, mask_BW = log_ratio(logprob_BW, old_logprob_BW, mask_BW)
    centred_BW = log_ratio_BW + torch.where(mask_BW, kl_old_BW.float(), 0)
    rho_BW = torch.where(mask_BW, std_BW.float() * centred_BW, 0).exp()
    advantage_B1 = advantage_B.float().detach()[:, None]
    surrogate_BW = torch.maximum(-advantage_B1 * rho_BW, -advantage_B1 * rho_BW.clamp(1 - low, 1 + high))
    metrics = ratio_metrics(rho_BW, mask_BW) | {
        "clip_fraction_high": fraction((rho_BW > 1 + high) & (advantage_B1 > 0), mask_BW),
        "clip_fraction_low": fraction((rho_BW < 1 - low) & (advantage_B1 < 0), mask_BW),
    }
    return torch.where(mask_BW, surrogate_BW / dt_BW.float().abs(), 0), metrics
