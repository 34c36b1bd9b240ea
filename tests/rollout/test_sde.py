"""The stochastic sampler against its published formulas, exact moments and torch's own Normal.

Legend: B rows, N latent tokens, D values per token, S steps.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal

from rollout.sde import SamplerKind, diffusion, logprob, ode_step, step, transition

levels = st.floats(0.05, 0.95)


def rows(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def state(seed: int = 0, b: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_BND, v_BND = torch.randn(2, b, 4, 3, generator=generator, dtype=dtype)
    return x_BND, v_BND


@pytest.mark.parametrize("kind", ["sde", "cps"])
@given(sigma=levels, share=st.floats(0.0, 0.95), seed=st.integers(0, 99))
def test_noise_level_zero_is_the_ode_step_bit_for_bit(
    kind: SamplerKind, sigma: float, share: float, seed: int
):
    x_BND, v_BND = state(seed)
    sigma_B, next_B = rows(sigma, 1.0), rows(sigma * share, 0.9)
    mean_BND, std_B = transition(x_BND, v_BND, sigma_B, next_B, 0.0, 0.9, kind)
    assert torch.equal(mean_BND, ode_step(x_BND, v_BND, sigma_B, next_B))
    assert torch.equal(std_B, torch.zeros(2))


def test_ode_step_moves_along_the_straight_path():
    x0, eps = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[0.5, 3.0]]])
    x = 0.25 * x0 + 0.75 * eps
    torch.testing.assert_close(ode_step(x, eps - x0, rows(0.75), rows(0.0)), x0)


def test_flow_sde_by_hand():
    # sigma .5 -> .3, a 1: g = 1, dt = -.2, eps_hat = 2 + .5 * 1 = 2.5,
    # mean = 2 + 1 * -.2 - 1 / (2 * .5) * 2.5 * .2 = 1.3, std = sqrt(.2)
    mean_BND, std_B = transition(
        torch.full((1, 1, 1), 2.0), torch.ones(1, 1, 1), rows(0.5), rows(0.3), 1.0, 0.9
    )
    assert mean_BND.item() == pytest.approx(1.3)
    assert std_B.item() == pytest.approx(math.sqrt(0.2))


def test_cps_by_hand():
    # x0_hat = 2 - .5 = 1.5, eps_hat = 2.5, a = .5: sin = cos = sqrt(.5)
    mean_BND, std_B = transition(
        torch.full((1, 1, 1), 2.0), torch.ones(1, 1, 1), rows(0.5), rows(0.3), 0.5, 0.9, "cps"
    )
    assert mean_BND.item() == pytest.approx(0.7 * 1.5 + 0.3 * math.sqrt(0.5) * 2.5)
    assert std_B.item() == pytest.approx(0.3 * math.sqrt(0.5))


@pytest.mark.parametrize("a", [0.3, 0.7, 1.3])
def test_first_step_has_std_a_and_scales_the_state_by_one_minus_half_a_squared(a: float):
    cap = rows(0.9643, dtype=torch.float64)
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    mean_BND, std_B = transition(one, zero, rows(1.0, dtype=torch.float64), cap, a, cap)
    assert std_B.item() == pytest.approx(a, rel=1e-12)
    assert mean_BND.item() == pytest.approx(1 - a * a / 2, rel=1e-12)


def final_moments(kind: SamplerKind, num_steps: int, a: float, data_mean: float, data_std: float):
    """Mean and std of what the sampler ends in for Gaussian data, propagated exactly through affine steps."""
    grid = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    mean, variance = 0.0, 1.0
    for sigma, sigma_next in itertools.pairwise(grid):
        total = (1 - sigma) ** 2 * data_std**2 + sigma**2
        slope = (sigma - (1 - sigma) * data_std**2) / total
        probe = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1)
        v = slope * (probe - (1 - sigma) * data_mean) - data_mean
        out, std_B = transition(probe, v, sigma.expand(2), sigma_next.expand(2), a, float(grid[1]), kind)
        offset, scale = out[0].item(), (out[1] - out[0]).item()
        mean, variance = scale * mean + offset, scale**2 * variance + std_B[0].item() ** 2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize(
    ("kind", "a", "expected"),
    [
        ("sde", 0.0, (0.247, 0.289, 0.297)),
        ("sde", 0.7, (0.282, 0.297, 0.300)),
        ("cps", 0.7, (0.213, 0.243, 0.251)),
    ],
)
def test_samples_of_gaussian_data_have_its_mean_and_the_known_spread(
    kind: SamplerKind, a: float, expected: tuple[float, ...]
):
    for num_steps, spread in zip((10, 50, 200), expected, strict=True):
        mean, std = final_moments(kind, num_steps, a, data_mean=1.5, data_std=0.3)
        assert mean == pytest.approx(1.5, abs=1e-9)
        assert std == pytest.approx(spread, abs=6e-4)


def test_cps_leaves_no_noise_on_point_mass_data_where_the_sde_does():
    assert final_moments("cps", 10, 0.7, 1.5, 0.0)[1] == pytest.approx(0, abs=1e-9)
    assert final_moments("sde", 10, 0.7, 1.5, 0.0)[1] == pytest.approx(0.083, abs=6e-4)


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_logprob_is_the_mean_of_the_normal_density(kind: SamplerKind):
    x_BND, v_BND = state()
    args = (rows(1.0, 0.6), rows(0.9, 0.5), 0.7, 0.9, kind)
    mean_BND, std_B = transition(x_BND, v_BND, *args)
    next_BND = step(x_BND, v_BND, *args, torch.randn(2, 4, 3))
    expected = torch.stack([Normal(mean_BND[b], std_B[b]).log_prob(next_BND[b]).mean() for b in range(2)])
    torch.testing.assert_close(logprob(next_BND, mean_BND, std_B), expected, atol=0, rtol=0)


def test_step_draws_from_its_transition():
    x_BND, v_BND = torch.zeros(1, 100, 100), torch.ones(1, 100, 100)
    noise_BND = torch.randn(1, 100, 100, generator=torch.Generator().manual_seed(0))
    args = (rows(0.6), rows(0.5), 0.7, 0.9, "sde")
    mean_BND, std_B = transition(x_BND, v_BND, *args)
    drawn = step(x_BND, v_BND, *args, noise_BND)
    assert (drawn - mean_BND).std().item() == pytest.approx(std_B.item(), rel=0.03)
    torch.testing.assert_close(drawn, mean_BND + std_B * noise_BND)


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_rows_at_unlike_noise_levels_do_not_mix(kind: SamplerKind):
    x_BND, v_BND = state(b=3)
    sigma_B, next_B, cap_B = rows(1.0, 0.7, 0.2), rows(0.9, 0.5, 0.1), rows(0.9, 0.9, 0.8)
    mean_BND, std_B = transition(x_BND, v_BND, sigma_B, next_B, 0.8, cap_B, kind)
    for b in range(3):
        row = slice(b, b + 1)
        alone = transition(x_BND[row], v_BND[row], sigma_B[row], next_B[row], 0.8, cap_B[row], kind)
        assert torch.equal(mean_BND[row], alone.mean_BND)
        assert torch.equal(std_B[row], alone.std_B)


def test_bf16_velocities_keep_the_state_in_fp32():
    x_BND, v_BND = state()
    mean_BND, std_B = transition(x_BND, v_BND.bfloat16(), rows(0.6, 0.6), rows(0.5, 0.5), 0.7, 0.9)
    assert mean_BND.dtype == std_B.dtype == torch.float32
    expected = transition(x_BND, v_BND.bfloat16().float(), rows(0.6, 0.6), rows(0.5, 0.5), 0.7, 0.9)
    assert torch.equal(mean_BND, expected.mean_BND)


def test_gradient_flows_through_the_mean_only_and_points_to_the_drawn_state():
    x_BND, v_BND = state(b=1)
    v_BND.requires_grad_()
    args = (rows(0.6), rows(0.5), 0.7, 0.9, "sde")
    next_BND = step(x_BND, v_BND, *args, torch.randn(1, 4, 3))
    mean_BND, std_B = transition(x_BND, v_BND, *args)
    logprob(next_BND, mean_BND, std_B).sum().backward()
    # d mean / d v < 0, so raising the log-probability moves v against (next - mean)
    assert torch.equal(v_BND.grad.sign(), (mean_BND - next_BND).detach().sign())


def test_gradient_of_a_two_step_chain_matches_finite_differences():
    x_BND, _ = state(b=1, dtype=torch.float64)
    grid = rows(1.0, 0.8, 0.5, dtype=torch.float64)
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def args(i: int) -> tuple[Tensor, Tensor, float, float]:
        return grid[i : i + 1], grid[i + 1 : i + 2], 0.7, 0.8

    states = [x_BND]
    for i in range(2):
        states.append(step(states[i], weight.detach() * states[i], *args(i), "sde", noise[i]))

    def total(w: Tensor) -> Tensor:
        terms = [logprob(states[i + 1], *transition(states[i], w * states[i], *args(i))) for i in range(2)]
        return torch.stack(terms).sum()

    assert torch.autograd.gradcheck(total, (weight,))


def test_diffusion_uses_the_cap_at_pure_noise_only():
    g_B = diffusion(rows(1.0, 0.5), 0.7, 0.9)
    torch.testing.assert_close(g_B, rows(0.7 * math.sqrt(10), 0.7))
