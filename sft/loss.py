"""The supervised loss: flow matching on every noisy image, cross-entropy on text that is to be written.

Legend: M noisy tokens, D values per token, Q text positions.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gvcot import distributed
from gvcot.model.unified import Prediction


def joint_loss(
    prediction: Prediction,
    target_MD: Float[Tensor, "M D"],
    ce_weight: float,
    weight_M: Float[Tensor, " M"] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Flow MSE (mean over D, then over noisy tokens) + ce_weight * text cross-entropy (mean over positions).

    Means are over the tokens of all workers, however they are spread: the mean of the workers' losses, and so
    of their gradients, is the loss of the whole batch. *Collective.*

    Args:
        prediction: the model's output; either kind of target may be absent.
        target_MD: velocities eps - x0 in pack order.
        ce_weight: weight of the text loss (BAGEL: 0.25 beside 1 for the flow loss).
        weight_M: weight of each token's error; None: all 1. The denominator stays M, so lowering one image's
            weight leaves the other's gradient as it is.

    Returns:
        The loss, and {"flow_mse", "text_ce"} for those that took part, unweighted and of all workers.
    """
    workers = distributed.world_size()
    noisy, words = distributed.totals([len(target_MD), len(prediction.text_targets)])
    error_M = F.mse_loss(prediction.velocity_MD.float(), target_MD, reduction="none").mean(-1)
    ce_Q = F.cross_entropy(prediction.text_logits.float(), prediction.text_targets, reduction="none")
    loss = prediction.velocity_MD.sum() * 0.0 + prediction.text_logits.sum() * 0.0
    if noisy:
        loss = loss + (error_M if weight_M is None else weight_M * error_M).sum() * workers / noisy
    if words:
        loss = loss + ce_weight * ce_Q.sum() * workers / words
    flow_sum, ce_sum = distributed.totals([error_M.sum().item(), ce_Q.sum().item()])
    metrics = {"flow_mse": flow_sum / noisy} if noisy else {}
    return loss, metrics | ({"text_ce": ce_sum / words} if words else {})
