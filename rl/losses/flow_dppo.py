"""Flow-DPPO: the unclipped surrogate with a divergence-based trust region, as implemented in verl-omni.

Legend: B chains, W steps of a phase's SDE window.

Instead of clipping the ratio of one noisy sample, a step is dropped when the exact KL between the trained and
the sampling transition is already large *and* the update would push it further out.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rl.losses.reduction import fraction, log_ratio, ratio_metrics


def flow_dppo(
    logprob_BW: Float[Tensor, "B W"],
    old_logprob_BW: Float[Tensor, "B W"],
    advantage_B: Float[Tensor, " B"],
    kl_threshold: float,
    mask_BW: Bool[Tensor, "B W"] | None = None,
    *,
    kl_old_BW: Float[Tensor, "B W"],
) -> tuple[Float[Tensor, "B W"], dict[str, Tensor]]:
    """loss = -A r, and 0 where KL_old >= threshold and (r > 1, A > 0  or  r < 1, A < 0).

    Args:
        logprob_BW, old_logprob_BW, advantage_B, mask_BW: as in `grpo_clip`.
        kl_threshold: largest KL per value to the sampling policy; 1e-5 in the published recipe.
        kl_old_BW: exact KL per value (`rl.losses.kl.normal_kl`); only compared, no gradient flows through it.

    Returns:
        Elementwise loss (0 where masked or dropped; dropped entries stay in the denominator), and 0-d
        metrics: the ratio's, clip_fraction_high (dropped with A > 0) and clip_fraction_low (dropped with A <
            0).
    """
    log_ratio_BW, mask_BW = log_ratio(logprob_BW, old_logprob_BW, mask_BW)
    ratio_BW = log_ratio_BW.exp()
    advantage_B1 = advantage_B.float().detach()[:, None]
    far_BW = kl_old_BW.detach() >= kl_threshold
    high_BW = far_BW & (ratio_BW > 1) & (advantage_B1 > 0)
    low_BW = far_BW & (ratio_BW < 1) & (advantage_B1 < 0)
    loss_BW = torch.where(mask_BW & ~high_BW & ~low_BW, -advantage_B1 * ratio_BW, 0)
    metrics = ratio_metrics(ratio_BW, mask_BW) | {
        "clip_fraction_high": fraction(high_BW, mask_BW),
        "clip_fraction_low": fraction(low_BW, mask_BW),
    }
    return loss_BW, metrics
