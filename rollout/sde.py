"""One denoising step of a rectified flow: deterministic (ODE) or stochastic with a log-probability.

Legend: B rows, N latent tokens, D values per token. Rows may stand at different noise levels, so a replay
can batch many steps of many chains in one call.

Notation: sigma in [0, 1] with 1 = pure noise, x_sigma = (1 - sigma) x0 + sigma eps, velocity v ~ eps - x0,
x0_hat = x - sigma v, eps_hat = x + (1 - sigma) v, dt = sigma_next - sigma < 0, noise level a.

    sde (Flow-GRPO, arXiv:2505.05470):  g = a sqrt(sigma / (1 - sigma)),  std = g sqrt|dt|,
                                        mean = x + v dt - g^2 / (2 sigma) eps_hat |dt|
    cps (coefficients preserving sampling, arXiv:2509.05952):  std = sigma_next sin(a pi / 2),
                                        mean = (1 - sigma_next) x0_hat + sigma_next cos(a pi / 2) eps_hat

Both are written as "ODE step minus a correction", so that a = 0 gives the ODE step bit for bit. All of this
happens in the dtype of `x`, which callers keep in fp32 whatever the model computes in.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

SamplerKind = Literal["sde", "cps"]


class Transition(NamedTuple):
    """The Normal distribution of the next state."""

    mean_BND: Tensor
    """Mean of every value."""

    std_B: Tensor
    """Standard deviation, one per row; includes sqrt|dt|."""


def ode_step(
    x_BND: Float[Tensor, "B N D"],
    v_BND: Float[Tensor, "B N D"],
    sigma_B: Float[Tensor, " B"],
    sigma_next_B: Float[Tensor, " B"],
) -> Float[Tensor, "B N D"]:
    """One Euler step along the probability-flow ODE: x + v (sigma_next - sigma).

    Args:
        x_BND: state at `sigma_B`.
        v_BND: the model's velocity there, of any float dtype.
        sigma_B, sigma_next_B: noise levels before and after the step.
    """
    return x_BND + v_BND.to(x_BND.dtype) * _per_row(sigma_next_B - sigma_B, x_BND)


def diffusion(
    sigma_B: Float[Tensor, " B"], noise_level: float, sigma_cap_B: Float[Tensor, " B"] | float
) -> Float[Tensor, " B"]:
    """Flow-SDE's diffusion coefficient g = a sqrt(sigma / (1 - sigma)), per unit of sqrt(time).

    Args:
        sigma_B: noise levels in (0, 1].
        noise_level: a.
        sigma_cap_B: stands for sigma in the denominator where sigma is 1; the first grid value after 1.
    """
    cap_B = torch.as_tensor(sigma_cap_B, dtype=sigma_B.dtype, device=sigma_B.device)
    return noise_level * torch.sqrt(sigma_B / (1 - torch.where(sigma_B >= 1, cap_B, sigma_B)))


def transition(
    x_BND: Float[Tensor, "B N D"],
    v_BND: Float[Tensor, "B N D"],
    sigma_B: Float[Tensor, " B"],
    sigma_next_B: Float[Tensor, " B"],
    noise_level: float,
    sigma_cap_B: Float[Tensor, " B"] | float,
    kind: SamplerKind = "sde",
) -> Transition:
    """Mean and standard deviation of the next state under the stochastic sampler (see module docstring).

    Args:
        x_BND: fp32 state at `sigma_B`.
        v_BND: the model's velocity there, of any float dtype.
        sigma_B: noise levels in (0, 1].
        sigma_next_B: noise levels after the step, below `sigma_B`.
        noise_level: a >= 0. 0 gives the ODE step bit for bit and std 0, for which no log-probability exists.
        sigma_cap_B: the first grid value after 1 (see `diffusion`); makes std equal a in the first step.
        kind: "sde" or "cps".
    """
    ode_BND = ode_step(x_BND, v_BND, sigma_B, sigma_next_B)
    eps_BND = x_BND + _per_row(1 - sigma_B, x_BND) * v_BND.to(x_BND.dtype)
    if kind == "sde":
        g_B = diffusion(sigma_B, noise_level, sigma_cap_B)
        dt_B = (sigma_next_B - sigma_B).abs()
        pull_B = g_B.square() / (2 * sigma_B) * dt_B
        std_B = g_B * dt_B.sqrt()
    else:
        angle = noise_level * math.pi / 2
        pull_B = sigma_next_B * (1 - math.cos(angle))
        std_B = sigma_next_B * math.sin(angle)
    return Transition(ode_BND - _per_row(pull_B, x_BND) * eps_BND, std_B.to(x_BND.dtype))


def step(
    x_BND: Float[Tensor, "B N D"],
    v_BND: Float[Tensor, "B N D"],
    sigma_B: Float[Tensor, " B"],
    sigma_next_B: Float[Tensor, " B"],
    noise_level: float,
    sigma_cap_B: Float[Tensor, " B"] | float,
    kind: SamplerKind,
    noise_BND: Float[Tensor, "B N D"],
) -> Float[Tensor, "B N D"]:
    """One stochastic step: mean + std * noise. Args as in `transition`; `noise_BND` is standard Normal."""
    mean_BND, std_B = transition(x_BND, v_BND, sigma_B, sigma_next_B, noise_level, sigma_cap_B, kind)
    return mean_BND + _per_row(std_B, x_BND) * noise_BND.to(x_BND.dtype)


def logprob(
    next_BND: Float[Tensor, "B N D"], mean_BND: Float[Tensor, "B N D"], std_B: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Log-probability of the drawn next state: the *mean* over N * D of the Normal log-density.

    The mean (Flow-GRPO's convention) makes a ratio the N*D-th root of the true one; hence clip ranges near
    1e-5. `next_BND` is data and is detached: gradients flow through the mean only.

    Args:
        next_BND: the state that was drawn.
        mean_BND, std_B: its transition. std 0 (an ODE step, or a CPS step to sigma 0) has no density: the
            result is then infinite or NaN, and callers must not ask for it.
    """
    density = Normal(mean_BND, _per_row(std_B, mean_BND), validate_args=False)
    return density.log_prob(next_BND.detach().to(mean_BND.dtype)).mean(dim=(1, 2))


def _per_row(value_B: Tensor, like_BND: Tensor) -> Tensor:
    return value_B.to(like_BND.dtype)[:, None, None]
