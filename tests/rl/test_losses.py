"""The policy losses: hand-computed cases, gradients, and what distinguishes them.

Legend: B chains, W steps of a window, N latent tokens, D values per token.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from rl.losses.flow_dppo import flow_dppo
from rl.losses.grpo_clip import grpo_clip
from rl.losses.grpo_guard import grpo_guard
from rl.losses.kl import normal_kl, velocity_kl_coefficient, velocity_mse
from rl.losses.reduction import masked_mean
from rollout.sde import logprob, transition


def logs(*ratios: float) -> Tensor:
    return torch.tensor([ratios]).log()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.05, 2.0, -2.1),  # inside the range
        (1.50, 2.0, -2.2),  # too far in the direction of A > 0: clipped at 1.1
        (0.50, 2.0, -1.0),  # far, but the wrong way: never clipped
        (0.50, -2.0, 1.8),  # too far for A < 0: clipped at .9
        (1.50, -2.0, 3.0),  # the wrong way: never clipped
    ],
)
def test_clipped_loss_by_hand(ratio: float, advantage: float, expected: float):
    loss_BW, metrics = grpo_clip(logs(ratio), logs(1.0), torch.tensor([advantage]), 0.1)
    assert loss_BW.item() == pytest.approx(expected, rel=1e-6)
    clipped = expected in (-2.2, 1.8)
    high, low = metrics["clip_fraction_high"].item(), metrics["clip_fraction_low"].item()
    assert (high, low) == (float(clipped and advantage > 0), float(clipped and advantage < 0))


def test_two_sided_clip_range_and_metrics():
    advantage_B = torch.tensor([1.0])
    loss_BW, metrics = grpo_clip(logs(0.5, 1.0, 2.0), logs(1, 1, 1), advantage_B, (0.1, 0.3))
    torch.testing.assert_close(loss_BW, torch.tensor([[-0.5, -1.0, -1.3]]))
    assert metrics["ratio_mean"].item() == pytest.approx(3.5 / 3)
    assert metrics["ratio_min"].item() == pytest.approx(0.5)
    assert metrics["ratio_max"].item() == pytest.approx(2.0)
    assert metrics["clip_fraction_high"].item() == pytest.approx(1 / 3)


def test_masked_entries_reach_neither_loss_nor_metrics_nor_gradient():
    logprob_BW = torch.tensor([[0.0, math.nan], [math.inf, 0.2]], requires_grad=True)
    mask_BW = torch.tensor([[True, False], [False, True]])
    loss_BW, metrics = grpo_clip(logprob_BW, torch.zeros(2, 2), torch.ones(2), 0.5, mask_BW)
    masked_mean(loss_BW, mask_BW, 2).backward()
    assert loss_BW[~mask_BW].eq(0).all()
    assert logprob_BW.grad[~mask_BW].eq(0).all()
    assert logprob_BW.grad[mask_BW].ne(0).all()
    assert metrics["ratio_max"].item() == pytest.approx(math.exp(0.2))
    _, empty = grpo_clip(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1), 0.5, torch.zeros(1, 1).bool())
    assert all(math.isfinite(v.item()) for v in empty.values())


class Step:
    """One flow-SDE step of `b` chains drawn under an old velocity, replayed under a shifted one."""

    def __init__(self, dt: float = 0.1, shift: float = 0.0, b: int = 4, size: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x, v_old, noise = torch.randn(3, b, size, size, generator=generator)
        self.direction = torch.randn(b, size, size, generator=generator)
        self.sigma, self.next = torch.full((b,), 0.6), torch.full((b,), 0.6 - dt)
        self.v = (v_old + shift * self.direction).requires_grad_()
        self.mean_old, self.std = self.transition(v_old)
        self.drawn = self.mean_old + self.std[:, None, None] * noise
        self.old_logprob_BW = logprob(self.drawn, self.mean_old, self.std)[:, None]
        self.v_old = v_old

    def transition(self, v: Tensor):
        return transition(self.x, v, self.sigma, self.next, 0.7, 0.9)

    def logprob_BW(self) -> Tensor:
        return logprob(self.drawn, *self.transition(self.v))[:, None]

    def kl_BW(self) -> Tensor:
        return normal_kl(self.transition(self.v).mean_BND, self.mean_old, self.std)[:, None]

    def guard(self, advantage_B: Tensor, clip: float = 1.0):
        return grpo_guard(
            self.logprob_BW(),
            self.old_logprob_BW,
            advantage_B,
            clip,
            kl_old_BW=self.kl_BW(),
            std_BW=self.std[:, None],
            dt_BW=(self.next - self.sigma)[:, None],
        )


def test_replay_of_an_unchanged_policy_has_ratio_exactly_one():
    step = Step()
    _, metrics = grpo_clip(step.logprob_BW(), step.old_logprob_BW, torch.ones(4), 1e-5)
    assert metrics["ratio_min"].item() == metrics["ratio_max"].item() == metrics["ratio_mean"].item() == 1.0
    _, moved = grpo_clip(Step(shift=1e-2).logprob_BW(), step.old_logprob_BW, torch.ones(4), 1e-5)
    assert moved["ratio_max"].item() != 1.0


def test_first_gradient_is_reinforce_with_a_group_baseline_for_clip_and_dppo():
    advantage_B = torch.tensor([1.5, -0.5, 0.25, -1.25])
    step = Step()
    (expected,) = torch.autograd.grad(-(advantage_B[:, None] * step.logprob_BW()).mean(), step.v)
    clip, _ = grpo_clip(step.logprob_BW(), step.old_logprob_BW, advantage_B, 1e-5)
    dppo, _ = flow_dppo(step.logprob_BW(), step.old_logprob_BW, advantage_B, 1e-5, kl_old_BW=step.kl_BW())
    for loss_BW in (clip, dppo):
        (gradient,) = torch.autograd.grad(loss_BW.mean(), step.v)
        torch.testing.assert_close(gradient, expected, atol=0, rtol=1e-6)


def test_a_step_against_the_gradient_raises_good_chains_and_lowers_bad_ones():
    advantage_B = torch.tensor([1.0, -1.0, 2.0, -2.0])
    step = Step()
    grpo_clip(step.logprob_BW(), step.old_logprob_BW, advantage_B, 1e-3)[0].mean().backward()
    after = logprob(step.drawn, *step.transition(step.v.detach() - 0.1 * step.v.grad))[:, None]
    assert torch.equal((after - step.old_logprob_BW).squeeze(1).sign(), advantage_B.sign())


def test_guard_gradient_does_not_depend_on_the_step_size_where_plain_grpo_does():
    advantage_B = torch.ones(4)

    def norms(dt: float) -> tuple[float, float]:
        step = Step(dt=dt)
        (guard,) = torch.autograd.grad(step.guard(advantage_B)[0].mean(), step.v)
        plain_BW, _ = grpo_clip(step.logprob_BW(), step.old_logprob_BW, advantage_B, 1.0)
        (plain,) = torch.autograd.grad(plain_BW.mean(), step.v)
        return guard.norm().item(), plain.norm().item()

    large, medium, small = norms(0.2), norms(0.1), norms(0.01)
    assert large[0] == pytest.approx(medium[0], rel=1e-4)
    assert large[0] == pytest.approx(small[0], rel=1e-3)
    assert large[1] / medium[1] == pytest.approx(math.sqrt(2), rel=1e-4)
    assert medium[1] / small[1] == pytest.approx(math.sqrt(10), rel=1e-3)


def test_guard_centres_the_log_ratio_under_the_old_policy():
    step = Step(shift=0.3, b=2000, size=4)
    raw = (step.logprob_BW() - step.old_logprob_BW).mean().item()
    centred = (step.logprob_BW() - step.old_logprob_BW + step.kl_BW()).mean().item()
    assert raw == pytest.approx(-step.kl_BW().mean().item(), rel=0.15)
    assert abs(centred) < 0.1 * abs(raw)
    _, metrics = step.guard(torch.ones(2000))
    assert metrics["ratio_mean"].item() == pytest.approx(1.0, abs=2e-4)


@pytest.mark.parametrize(
    ("ratio", "advantage", "kl", "dropped"),
    [
        (1.2, 1.0, 2e-5, True),
        (0.8, -1.0, 2e-5, True),
        (1.2, -1.0, 2e-5, False),  # coming back
        (0.8, 1.0, 2e-5, False),
        (1.2, 1.0, 0.5e-5, False),  # still near
    ],
)
def test_dppo_drops_only_what_is_far_and_moves_away(ratio: float, advantage: float, kl: float, dropped: bool):
    loss_BW, metrics = flow_dppo(
        logs(ratio), logs(1.0), torch.tensor([advantage]), 1e-5, kl_old_BW=torch.tensor([[kl]])
    )
    assert loss_BW.item() == pytest.approx(0.0 if dropped else -advantage * ratio)
    assert metrics["clip_fraction_high"].item() + metrics["clip_fraction_low"].item() == float(dropped)


def test_kl_matches_torch_and_its_velocity_form():
    step = Step(dt=0.07, shift=0.2)
    mean = step.transition(step.v.detach()).mean_BND
    std = step.std[:, None, None].expand_as(mean)
    expected = kl_divergence(Normal(mean, std), Normal(step.mean_old, std)).mean(dim=(1, 2))
    torch.testing.assert_close(normal_kl(mean, step.mean_old, step.std), expected, rtol=1e-5, atol=0)
    from_velocity = velocity_kl_coefficient(step.sigma, step.next, 0.7, 0.9) * velocity_mse(
        step.v.detach(), step.v_old
    )
    torch.testing.assert_close(from_velocity, expected, rtol=1e-4, atol=0)


def test_velocity_mse_pulls_the_policy_and_never_the_reference():
    v = torch.tensor([[[1.0, 3.0]]], requires_grad=True)
    ref = torch.zeros(1, 1, 2, requires_grad=True)
    value = velocity_mse(v, ref)
    value.sum().backward()
    assert value.item() == 5.0
    assert v.grad.tolist() == [[[1.0, 3.0]]]
    assert ref.grad is None


def test_micro_batches_add_up_to_the_whole_batch_with_filtered_entries():
    generator = torch.Generator().manual_seed(0)
    logprob_BW = torch.randn(8, 3, generator=generator) * 0.01
    mask_BW = torch.rand(8, 3, generator=generator) > 0.4
    advantage_B = torch.randn(8, generator=generator)
    count = mask_BW.sum().float()

    def gradient(parts: list[slice]) -> Tensor:
        leaf = logprob_BW.clone().requires_grad_()
        for part in parts:
            loss_BW, _ = grpo_clip(
                leaf[part], torch.zeros(8, 3)[part], advantage_B[part], 5e-3, mask_BW[part]
            )
            masked_mean(loss_BW, mask_BW[part], count).backward()
        return leaf.grad

    whole = gradient([slice(0, 8)])
    assert torch.equal(whole, gradient([slice(0, 3), slice(3, 4), slice(4, 8)]))
    assert masked_mean(torch.ones(2), torch.zeros(2).bool(), 0).item() == 0
