"""Drawn images noised afresh: the states of the forward process, at which a policy can be trained without
knowing how the images were sampled.

Legend: B chains, W noise levels per image, N latent tokens, D values per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gvcot import seeds
from gvcot.model import flow
from gvcot.types import ImagePhase, Trajectory
from rollout.replay import States


@dataclass(kw_only=True, slots=True)
class Renoised:
    """One image of each chain, noised."""

    states: States
    target_BWND: Tensor
    """The velocities eps - x0 that lead back to the images."""


def renoise(
    trajectory: Trajectory, chain_seeds_B: Sequence[int], num_times: int, shift: float
) -> dict[str, Renoised]:
    """x_t = (1 - t) x0 + t eps of every drawn image, at logit-normal times shifted as BAGEL's.

    Args:
        trajectory: B chains.
        chain_seeds_B: times and noise of an image depend on (its chain's seed, its phase) alone.
        num_times: W, drawn independently.
        shift: of the times towards noise.
    """
    out = {}
    for phase in trajectory.phases:
        assert isinstance(phase, ImagePhase), "only images can be noised"
        z_BW1 = seeds.noise_BND([seeds.derive(s, phase.name, "time") for s in chain_seeds_B], (num_times, 1))
        t_BW = flow.shift_time(torch.sigmoid(z_BW1[..., 0]), shift)
        shape = (num_times, *phase.final_BND.shape[1:])
        eps_BWND = seeds.noise_BND([seeds.derive(s, phase.name, "forward") for s in chain_seeds_B], shape)
        x0_BWND = phase.final_BND[:, None].expand_as(eps_BWND)
        x_BWND = flow.interpolate(x0_BWND.flatten(0, 1), eps_BWND.flatten(0, 1), t_BW.flatten())
        out[phase.name] = Renoised(
            states=States(x_BWND=x_BWND.view_as(eps_BWND), t_BW=t_BW),
            target_BWND=flow.velocity_target(x0_BWND, eps_BWND),
        )
    return out
