"""Drawn images noised afresh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rollout.renoise import renoise
from rollout.replay import velocities

SEEDS = [11, 12, 13, 14]


def test_states_lie_on_the_line_from_the_image_to_their_noise(roll: Callable[..., Any]) -> None:
    trajectory = roll().drawn.trajectory
    for phase, image in zip(trajectory.phases, renoise(trajectory, SEEDS, 3, 8.0).values(), strict=True):
        t_BW11 = image.states.t_BW[..., None, None]
        assert image.states.x_BWND.shape == (4, 3, *phase.final_BND.shape[1:])
        origin = image.states.x_BWND - t_BW11 * image.target_BWND  # x_t - t (eps - x0) = x0
        torch.testing.assert_close(origin, phase.final_BND[:, None].expand_as(origin), atol=1e-5, rtol=0)
        eps = origin + image.target_BWND
        assert eps.std().item() > 0.8


def test_noise_belongs_to_the_chain_and_its_phase(roll: Callable[..., Any]) -> None:
    trajectory = roll().drawn.trajectory
    first, again = renoise(trajectory, SEEDS, 2, 1.0), renoise(trajectory, SEEDS, 2, 1.0)
    moved = renoise(trajectory, [99, *SEEDS[1:]], 2, 1.0)
    for name, image in first.items():
        assert torch.equal(image.target_BWND, again[name].target_BWND)
        assert torch.equal(image.target_BWND[1:], moved[name].target_BWND[1:])
        assert not torch.equal(image.target_BWND[0], moved[name].target_BWND[0])
        assert len(set(image.states.t_BW.flatten().tolist())) == 8
    assert not torch.equal(first["x_cot"].states.t_BW, first["x_edit"].states.t_BW)


def test_a_larger_shift_trains_nearer_to_noise(roll: Callable[..., Any]) -> None:
    trajectory = roll().drawn.trajectory
    plain, shifted = (renoise(trajectory, SEEDS, 16, s)["x_cot"].states.t_BW for s in (1.0, 8.0))
    assert (shifted > plain).all()


def test_chains_that_are_asked_together_do_not_see_each_other(roll: Callable[..., Any]) -> None:
    rolled = roll()
    trajectory = rolled.drawn.trajectory
    states = {name: image.states for name, image in renoise(trajectory, SEEDS, 2, 3.0).items()}
    asked = (rolled.policy.model, rolled.chain, trajectory, rolled.prompt_B)
    with torch.no_grad():
        together = velocities(*asked, torch.arange(4), states)
        alone = velocities(*asked, torch.tensor([2]), states)
    for name, v_BWND in together.items():
        torch.testing.assert_close(v_BWND[2:3], alone[name], atol=1e-5, rtol=1e-4)
