"""Distances between the trained policy and another one (the reference, or the one that sampled).

Legend: B rows (denoising steps of chains), N latent tokens, D values per token. All are *means* over N * D.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rollout.sde import diffusion


def velocity_mse(v_BND: Float[Tensor, "B N D"], v_ref_BND: Float[Tensor, "B N D"]) -> Float[Tensor, " B"]:
    """Mean of (v - v_ref)^2 over N * D: UniGRPO's stand-in for the KL, as strong at every noise level."""
    return (v_BND.float() - v_ref_BND.float().detach()).square().mean(dim=(1, 2))


def normal_kl(
    mean_BND: Float[Tensor, "B N D"], mean_ref_BND: Float[Tensor, "B N D"], std_B: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Exact KL per value between two transitions of equal std:

    mean over N * D of (mean - mean_ref)^2 / (2 std^2)
    """
    distance_B = (mean_BND.float() - mean_ref_BND.float().detach()).square().mean(dim=(1, 2))
    return distance_B / (2 * std_B.float().square())


def velocity_kl_coefficient(
    sigma_B: Float[Tensor, " B"],
    sigma_next_B: Float[Tensor, " B"],
    noise_level: float,
    sigma_cap_B: Float[Tensor, " B"] | float,
) -> Float[Tensor, " B"]:
    """The factor c with `normal_kl` = c * `velocity_mse` for the flow SDE:

        c = |dt| / 2 * (g (1 - sigma) / (2 sigma) + 1 / g)^2

    Args as in `rollout.sde.transition`; `noise_level` must be above 0.
    """
    g_B = diffusion(sigma_B, noise_level, sigma_cap_B)
    dt_B = (sigma_next_B - sigma_B).abs()
    return dt_B / 2 * (g_B * (1 - sigma_B) / (2 * sigma_B) + 1 / g_B).square()
