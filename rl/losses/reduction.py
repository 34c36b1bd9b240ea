"""Reductions with an explicit denominator, and the ratio statistics that every policy loss reports.

Legend: B chains, W steps of a phase's SDE window.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], count: Tensor | float | int
) -> Float[Tensor, ""]:
    """Sum of the unmasked values divided by `count`.

    `count` is the number of unmasked values in the *whole* step, over all micro-batches and workers, so that
    the gradient doesn't depend on how the step was cut up. Where gradients are averaged over workers (FSDP),
    multiply the result by the number of workers. Masked values may be NaN. A count of 0 gives 0.
    """
    total = torch.where(mask, values, 0).sum()
    return total / max(float(count), 1.0)


def log_ratio(
    logprob_BW: Float[Tensor, "B W"],
    old_logprob_BW: Float[Tensor, "B W"],
    mask_BW: Bool[Tensor, "B W"] | None,
) -> tuple[Float[Tensor, "B W"], Bool[Tensor, "B W"]]:
    """log r = logprob - old_logprob in fp32, 0 where masked (before any exp, so that no infinity is born)."""
    mask_BW = torch.ones_like(logprob_BW, dtype=torch.bool) if mask_BW is None else mask_BW
    return torch.where(mask_BW, logprob_BW.float() - old_logprob_BW.float().detach(), 0), mask_BW


def ratio_metrics(ratio_BW: Float[Tensor, "B W"], mask_BW: Bool[Tensor, "B W"]) -> dict[str, Tensor]:
    """Over the unmasked entries: ratio_mean, ratio_std, ratio_min and ratio_max (1, 0, 1, 1 if none), 0-d."""
    ratio_BW = ratio_BW.detach()
    count = mask_BW.sum().clamp_min(1)
    mean = torch.where(mask_BW, ratio_BW - 1, 0).sum() / count + 1
    return {
        "ratio_mean": mean,
        "ratio_std": (torch.where(mask_BW, ratio_BW - mean, 0).square().sum() / count).sqrt(),
        "ratio_min": torch.where(mask_BW, ratio_BW, torch.inf).amin() if mask_BW.any() else mean,
        "ratio_max": torch.where(mask_BW, ratio_BW, -torch.inf).amax() if mask_BW.any() else mean,
    }


def fraction(event_BW: Bool[Tensor, "B W"], mask_BW: Bool[Tensor, "B W"]) -> Float[Tensor, ""]:
    """Share of the unmasked entries where the event holds."""
    return (event_BW & mask_BW).float().sum() / mask_BW.sum().clamp_min(1)
