"""Rollouts: stochastic inside the window, the plain ODE elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from gvcot import seeds
from gvcot.sampler import draw, ode_denoiser
from gvcot.types import ImagePhase, Window
from rollout.config import RolloutConfig
from rollout.sample import chain_noise, window_denoiser

GRID = (2, 2)


def field(x_BND: Tensor, t_B: Tensor) -> Tensor:
    """Some velocity that depends on state and time."""
    return x_BND.sin() - 2 * t_B[:, None, None]


def euler(x_BND: Tensor, times: list[float]) -> Tensor:
    for now, after in pairwise(times):
        x_BND = x_BND + (after - now) * field(x_BND, torch.full((len(x_BND),), now))
    return x_BND


def phase_of(config: RolloutConfig, window: Window, rows: list[int]) -> tuple[Tensor, ImagePhase]:
    x_BND = chain_noise(rows)("x_cot", (len(rows), 4, 6))
    return x_BND, window_denoiser(config, {"x_cot": window}, rows)(field, "x_cot", x_BND, GRID)


@pytest.mark.parametrize(("start", "size"), [(0, 1), (1, 2), (0, 4), (2, 2)])
def test_the_ode_leads_to_the_window_and_away_from_it(start: int, size: int) -> None:
    config = RolloutConfig(num_steps=5)
    x_BND, phase = phase_of(config, Window(start=start, size=size), [3, 4, 5])
    assert phase.logprob_BW.shape == (3, size)
    assert phase.latents_BVND.shape == (3, size + 1, 4, 6)
    times = [1 - i / 5 for i in range(6)]
    before, after = times[: start + 1], times[start + size :]
    torch.testing.assert_close(phase.latents_BVND[:, 0], euler(x_BND, before), atol=1e-5, rtol=0)
    torch.testing.assert_close(phase.final_BND, euler(phase.latents_BVND[:, -1], after), atol=1e-5, rtol=0)


def test_steps_of_the_window_follow_flow_sde_with_the_chain_s_noise() -> None:
    config = RolloutConfig(num_steps=4, noise_level=0.7)
    _, phase = phase_of(config, Window(start=1, size=1), [9])
    x, drawn = phase.latents_BVND[:, 0], phase.latents_BVND[:, 1]
    sigma, dt = 0.75, 0.25
    g = 0.7 * math.sqrt(sigma / (1 - sigma))
    v = field(x, torch.tensor([sigma]))
    mean = x - v * dt - g**2 / (2 * sigma) * (x + (1 - sigma) * v) * dt
    noise = seeds.noise_BND([seeds.derive(9, "x_cot", "step", 1)], (4, 6))
    torch.testing.assert_close(drawn, mean + g * math.sqrt(dt) * noise, atol=1e-5, rtol=0)
    std = g * math.sqrt(dt)
    density = -0.5 * noise.square() - math.log(std) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(phase.logprob_BW[0, 0], density.mean(), atol=1e-5, rtol=0)


def test_a_chain_s_noise_depends_on_its_seed_and_phase_and_not_on_its_batch() -> None:
    config, window = RolloutConfig(num_steps=4), Window(start=0, size=2)
    together, alone = phase_of(config, window, [1, 2, 3])[1], phase_of(config, window, [2])[1]
    assert torch.equal(together.latents_BVND[1], alone.latents_BVND[0])
    noise = chain_noise([1, 2])
    assert torch.equal(noise("x_cot", (2, 4, 6)), noise("x_cot", (2, 4, 6)))
    assert not torch.equal(noise("x_cot", (2, 4, 6)), noise("x_edit", (2, 4, 6)))
    assert not torch.equal(*noise("x_cot", (2, 4, 6)))


def test_without_noise_a_rollout_is_plain_sampling_bit_for_bit(roll: Callable[..., Any]) -> None:
    config = RolloutConfig(num_steps=4, shift=2.0, noise_level=0.0)
    rolled = roll(config=config)
    plain = draw(
        rolled.policy.model,
        rolled.policy.codec,
        rolled.chain,
        rolled.drawn.trajectory.condition,
        denoise=ode_denoiser(config.num_steps, config.shift),
        noise=chain_noise([0, 1, 1000, 1001]),
        chains_per_prompt=2,
    )
    for name in ("x_cot", "x_edit"):
        assert torch.equal(plain.images[name], rolled.drawn.images[name])
    assert all(p.logprob_BW.shape == (4, 0) for p in rolled.drawn.trajectory.phases)


@pytest.mark.parametrize("sampler", ["sde", "cps"])
def test_every_phase_has_its_own_window(roll: Callable[..., Any], sampler: str) -> None:
    windows = {"x_cot": Window(start=2, size=1), "x_edit": Window(start=0, size=3)}
    rolled = roll(config=RolloutConfig(num_steps=4, sampler=sampler), windows=windows)
    x_cot, x_edit = rolled.drawn.trajectory.phases
    assert x_cot.logprob_BW.shape == (4, 1)
    assert x_edit.logprob_BW.shape == (4, 3)
    assert x_cot.logprob_BW.isfinite().all()
    assert x_edit.logprob_BW.isfinite().all()
    assert x_cot.feedback_vit_B3HW is not None
    assert x_edit.feedback_vit_B3HW is None
