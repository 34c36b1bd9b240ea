"""DiffusionNFT: policy improvement on the forward process (Zheng et al. 2025, arXiv:2509.16117, eq. 8-9).

Legend: B chains, W noise levels, N latent tokens, D values per token.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def optimality(advantage_B: Float[Tensor, " B"], scale: float) -> Float[Tensor, " B"]:
    """r = 1/2 + 1/2 clip(A / scale, -1, 1): how good a chain is, from 0 to 1."""
    return 0.5 + 0.5 * (advantage_B / scale).clamp(-1.0, 1.0)


def diffusion_nft(
    velocity_BWND: Float[Tensor, "B W N D"],
    old_BWND: Float[Tensor, "B W N D"],
    target_BWND: Float[Tensor, "B W N D"],
    advantage_B: Float[Tensor, " B"],
    *,
    beta: float,
    scale: float,
) -> tuple[Float[Tensor, "B W"], dict[str, Tensor]]:
    """r |v+ - target|^2 + (1 - r) |v- - target|^2 with v+- = v_old +- beta (v - v_old), as means over N * D,
    divided by beta.

    Good images pull the velocity to where they came from, bad ones push it away. At v = v_old the gradient is
    that of flow matching weighted by 2 r - 1, for any beta. (The paper's code further divides by a detached
    error of its own; this is its plain form.)

    Args:
        velocity_BWND: of the policy that is trained.
        old_BWND: of the policy that sampled; no gradient flows through it.
        target_BWND: eps - x0 of the sampled images.
        advantage_B: of the chain's phase.
        beta: how far the implicit policies are put apart.
        scale: advantages of this size count as entirely good or bad.

    Returns:
        The loss per state, and {"optimality_std", "error"}: the spread of r, and the squared error of v.
    """
    old_BWND = old_BWND.detach().float()
    step_BWND = beta * (velocity_BWND.float() - old_BWND)
    r_B1 = optimality(advantage_B, scale)[:, None]
    good_BW = (old_BWND + step_BWND - target_BWND).square().mean(dim=(2, 3))
    bad_BW = (old_BWND - step_BWND - target_BWND).square().mean(dim=(2, 3))
    error = (velocity_BWND.detach().float() - target_BWND).square().mean()
    loss_BW = (r_B1 * good_BW + (1 - r_B1) * bad_BW) / beta
    return loss_BW, {"optimality_std": r_B1.std(correction=0), "error": error}
