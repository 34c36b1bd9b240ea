"""Drawing chains with a stochastic window and log-probabilities.

Legend: B chains, S steps, W window steps, V = W + 1, N latent tokens, D values per token, K phases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gvcot import seeds
from gvcot.model import flow
from gvcot.sampler import Denoiser, NoiseFn, VelocityFn
from gvcot.types import ImagePhase, Window
from rollout import sde
from rollout.config import RolloutConfig


def window_denoiser(
    config: RolloutConfig, windows: Mapping[str, Window], chain_seeds_B: Sequence[int]
) -> Denoiser:
    """A denoiser that is stochastic inside each phase's window and follows the ODE elsewhere.

    Args:
        config: steps, grid, sampler kind and noise level.
        windows: phase name -> its window.
        chain_seeds_B: one seed per chain; a step's noise depends on (chain seed, phase, step) alone.

    With `config.noise_level == 0` the states are those of `gvcot.sampler.ode_denoiser`, bit for bit.
    """
    sigmas = flow.sigma_schedule(config.num_steps, config.shift)

    def denoise(velocity: VelocityFn, name: str, x_BND: Tensor, grid: tuple[int, int]) -> ImagePhase:
        window = windows[name]
        states, logprobs = [], []
        for i in range(config.num_steps):
            sigma_B, next_B = (sigmas[j].expand(len(x_BND)) for j in (i, i + 1))
            if i == window.start:
                states.append(x_BND)
            v_BND = velocity(x_BND, sigma_B)
            if window.start <= i < window.start + window.size and config.noise_level > 0:
                move = sde.transition(
                    x_BND, v_BND, sigma_B, next_B, config.noise_level, float(sigmas[1]), config.sampler
                )
                noise_BND = seeds.noise_BND(
                    [seeds.derive(s, name, "step", i) for s in chain_seeds_B], x_BND.shape[1:]
                )
                x_BND = move.mean_BND + move.std_B[:, None, None] * noise_BND
                logprobs.append(sde.logprob(x_BND, move.mean_BND, move.std_B))
                states.append(x_BND)
            else:
                x_BND = sde.ode_step(x_BND, v_BND, sigma_B, next_B)
        return ImagePhase(
            name=name,
            grid=grid,
            sigmas=sigmas,
            window=Window(start=window.start, size=len(logprobs)),
            latents_BVND=torch.stack(states, 1),
            logprob_BW=torch.stack(logprobs, 1) if logprobs else x_BND.new_zeros(len(x_BND), 0),
            final_BND=x_BND,
            feedback_vit_B3HW=None,
        )

    return denoise


def chain_noise(chain_seeds_B: Sequence[int]) -> NoiseFn:
    """Initial noise that depends on (chain seed, phase) alone."""

    def noise(name: str, shape: tuple[int, int, int]) -> Tensor:
        return seeds.noise_BND([seeds.derive(s, name, "init") for s in chain_seeds_B], shape[1:])

    return noise
