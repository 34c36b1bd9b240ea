"""The clipped surrogate of PPO and GRPO, on denoising steps (Flow-GRPO, arXiv:2505.05470, eq. 5).

Legend: B chains, W steps of a phase's SDE window.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rl.losses.reduction import fraction, log_ratio, ratio_metrics


def grpo_clip(
    logprob_BW: Float[Tensor, "B W"],
    old_logprob_BW: Float[Tensor, "B W"],
    advantage_B: Float[Tensor, " B"],
    clip_range: float | tuple[float, float],
    mask_BW: Bool[Tensor, "B W"] | None = None,
) -> tuple[Float[Tensor, "B W"], dict[str, Tensor]]:
    """loss = max(-A r, -A clip(r, 1 - low, 1 + high)),  r = exp(logprob - old_logprob).

    Log-probabilities are means over the latent's values, so useful clip ranges are 1e-5 to 1e-4.

    Args:
        logprob_BW: under the policy being trained, with gradient.
        old_logprob_BW: under the policy that sampled; detached.
        advantage_B: one per chain, shared by the window's steps.
        clip_range: one number, or (low, high).
        mask_BW: True for the entries that count; None means all.

    Returns:
        Elementwise loss (0 where masked; reduce it with `masked_mean`), and 0-d metrics: ratio_mean,
        ratio_std, ratio_min, ratio_max, clip_fraction_high (A > 0 and r above the range) and
        clip_fraction_low (A < 0 and r below it).
    """
    low, high = clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
    log_ratio_BW, mask_BW = log_ratio(logprob_BW, old_logprob_BW, mask_BW)
    ratio_BW = log_ratio_BW.exp()
    advantage_B1 = advantage_B.float().detach()[:, None]
    loss_BW = torch.maximum(-advantage_B1 * ratio_BW, -advantage_B1 * ratio_BW.clamp(1 - low, 1 + high))
    metrics = ratio_metrics(ratio_BW, mask_BW) | {
        "clip_fraction_high": fraction((ratio_BW > 1 + high) & (advantage_B1 > 0), mask_BW),
        "clip_fraction_low": fraction((ratio_BW < 1 - low) & (advantage_B1 < 0), mask_BW),
    }
    return torch.where(mask_BW, loss_BW, 0), metrics
