"""DiffusionNFT's loss, against its definition and against weighted flow matching."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rl.losses.diffusion_nft import diffusion_nft, optimality

ADVANTAGE_B = torch.tensor([3.0, -1.0, 0.0, 50.0])


def velocities(num: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 2, 5, 6, generator=generator) for _ in range(num)]


def test_optimality_is_a_half_for_the_average_chain_and_saturates():
    r_B = optimality(torch.tensor([0.0, 1.0, -1.0, 9.0, -9.0]), scale=2.0)
    assert r_B.tolist() == [0.5, 0.75, 0.25, 1.0, 0.0]


def test_hand_computed_value():
    """One value: old 1, now 2, target 4, beta 0.5, r 0.75: v+ = 1.5 and v- = 0.5."""
    v, old, target = (torch.full((1, 1, 1, 1), x) for x in (2.0, 1.0, 4.0))
    loss_BW, metrics = diffusion_nft(v, old, target, torch.tensor([1.0]), beta=0.5, scale=2.0)
    assert loss_BW.item() == pytest.approx((0.75 * 2.5**2 + 0.25 * 3.5**2) / 0.5)
    assert metrics["error"].item() == 4.0


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_at_the_sampling_policy_the_gradient_is_weighted_flow_matching_for_any_beta(beta: float):
    v, target = (x.double() for x in velocities(2))
    v.requires_grad_()
    loss_BW, _ = diffusion_nft(v, v.detach(), target, ADVANTAGE_B, beta=beta, scale=4.0)
    (gradient,) = torch.autograd.grad(loss_BW.sum(), v)
    weight_B = 2 * optimality(ADVANTAGE_B, 4.0) - 1
    matching = (weight_B[:, None] * (v - target).square().mean(dim=(2, 3))).sum()
    (expected,) = torch.autograd.grad(matching, v)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_away_from_the_sampling_policy_beta_matters_and_old_gets_no_gradient():
    v, old, target = velocities()
    v.requires_grad_()
    old.requires_grad_()
    small, _ = diffusion_nft(v, old, target, ADVANTAGE_B, beta=0.1, scale=4.0)
    large, _ = diffusion_nft(v, old, target, ADVANTAGE_B, beta=1.0, scale=4.0)
    assert not torch.allclose(
        torch.autograd.grad(small.sum(), v)[0], torch.autograd.grad(large.sum(), v, retain_graph=True)[0]
    )
    large.sum().backward()
    assert old.grad is None
