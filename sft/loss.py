"""The supervised loss: flow matching on every noisy image, cross-entropy on text that is to be written.

Legend: M noisy tokens, D values per token, Q text positions.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gvcot.model.unified import Prediction


def joint_loss(
    prediction: Prediction,
    target_MD: Float[Tensor, "M D"],
    ce_weight: float,
    weight_M: Float[Tensor, " M"] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Flow MSE (mean over D, then over noisy tokens) + ce_weight * text cross-entropy (mean over positions).

    Args:
        prediction: the model's output; either kind of target may be absent.
        target_MD: velocities eps - x0 in pack order.
        ce_weight: weight of the text loss (BAGEL: 0.25 beside 1 for the flow loss).
        weight_M: weight of each token's error; None: all 1. The denominator stays M, so lowering one image's
            weight leaves the other's gradient as it is.

    Returns:
        The loss, and {"flow_mse", "text_ce"} for those that took part; both are unweighted.
    """
    loss = prediction.velocity_MD.sum() * 0.0
    metrics: dict[str, float] = {}
    if len(target_MD):
        error_MD = F.mse_loss(prediction.velocity_MD.float(), target_MD, reduction="none")
        loss = loss + (error_MD if weight_M is None else weight_M[:, None] * error_MD).mean()
        metrics["flow_mse"] = error_MD.mean().item()
    if len(prediction.text_targets):
        text_ce = F.cross_entropy(prediction.text_logits.float(), prediction.text_targets)
        loss = loss + ce_weight * text_ce
        metrics["text_ce"] = text_ce.item()
    return loss, metrics
