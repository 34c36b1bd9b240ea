"""A replay says of a rollout what the sampler said, with gradients through the whole prefix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gvcot.types import ChainConfig, Window
from rollout.config import RolloutConfig
from rollout.replay import Replay, replay


def replayed(rolled: Any, rows: Tensor | None = None) -> dict[str, Replay]:
    rows = rolled.rows if rows is None else rows
    return replay(
        rolled.policy.model, rolled.chain, rolled.drawn.trajectory, rolled.prompt_B, rows, rolled.config
    )


@pytest.mark.parametrize("sampler", ["sde", "cps"])
@pytest.mark.parametrize("feedback", [("vae", "vit"), ("vae",), ("vit",)])
@torch.no_grad()
def test_log_probs_are_those_of_the_sampler(
    roll: Callable[..., Any], sampler: str, feedback: tuple[str, ...]
) -> None:
    config = RolloutConfig(num_steps=4, shift=2.0, sampler=sampler)
    rolled = roll(config=config, chain=ChainConfig(feedback=feedback))
    out = replayed(rolled)
    for phase in rolled.drawn.trajectory.phases:
        torch.testing.assert_close(out[phase.name].logprob_BW, phase.logprob_BW, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["edit_first", "blank"])
@torch.no_grad()
def test_every_chain_is_replayed_in_its_own_order(roll: Callable[..., Any], name: str) -> None:
    rolled = roll(chain=ChainConfig(name=name))
    out = replayed(rolled)
    order = ["x_edit", "x_cot"] if name == "edit_first" else ["x_cot", "x_edit"]
    assert [phase.name for phase in rolled.drawn.trajectory.phases] == order
    for phase in rolled.drawn.trajectory.phases:
        torch.testing.assert_close(out[phase.name].logprob_BW, phase.logprob_BW, atol=1e-5, rtol=0)


@torch.no_grad()
def test_another_policy_says_something_else(roll: Callable[..., Any]) -> None:
    rolled = roll()
    rolled.policy.model.llm2vae.bias += 0.05
    out = replayed(rolled)
    for phase in rolled.drawn.trajectory.phases:
        assert (out[phase.name].logprob_BW - phase.logprob_BW).abs().min() > 1e-5


@torch.no_grad()
def test_what_was_drawn_cannot_be_swapped_between_prompts(roll: Callable[..., Any]) -> None:
    rolled = roll()
    rolled.prompt_B = rolled.prompt_B.flip(0)
    out = replayed(rolled)
    for phase in rolled.drawn.trajectory.phases:
        assert (out[phase.name].logprob_BW - phase.logprob_BW).abs().max() > 1e-5


@torch.no_grad()
def test_micro_batches_say_the_same(roll: Callable[..., Any]) -> None:
    rolled = roll(windows={"x_cot": Window(start=0, size=1), "x_edit": Window(start=1, size=2)})
    whole = replayed(rolled)
    parts = [replayed(rolled, rows) for rows in (torch.tensor([0]), torch.tensor([1, 2, 3]))]
    for name, replay_ in whole.items():
        joined = torch.cat([part[name].logprob_BW for part in parts])
        torch.testing.assert_close(joined, replay_.logprob_BW, atol=1e-5, rtol=0)


def test_gradients_reach_the_context_but_not_the_future(roll: Callable[..., Any]) -> None:
    rolled = roll()
    trajectory = rolled.drawn.trajectory
    source = trajectory.condition.source_latent_BND.requires_grad_()
    x_cot = trajectory.phases[0].final_BND.requires_grad_()
    out = replayed(rolled)
    by_cot = torch.autograd.grad(
        out["x_cot"].logprob_BW.sum(), [source, x_cot], retain_graph=True, allow_unused=True
    )
    by_edit = torch.autograd.grad(out["x_edit"].logprob_BW.sum(), [source, x_cot])
    assert by_cot[0].abs().max() > 0
    assert by_cot[1] is None or not by_cot[1].any()
    assert by_edit[0].abs().max() > 0
    assert by_edit[1].abs().max() > 0


def test_gradients_of_the_generation_expert_include_what_it_does_to_the_prefix(
    roll: Callable[..., Any],
) -> None:
    """Autograd agrees with a central difference of the log-probs, whose prefix is computed anew with the
    moved weight; gradients of a detached or cached prefix would not."""
    rolled = roll()
    weight = rolled.policy.model.language_model.model.layers[0].self_attn.v_proj_moe_gen.weight
    rolled.policy.model.requires_grad_(False)
    weight.requires_grad_(True)

    def total() -> Tensor:
        return sum(
            (r.logprob_BW.double().sum() for r in replayed(rolled).values()), torch.tensor(0.0).double()
        )

    (gradient,) = torch.autograd.grad(total(), weight)
    direction = gradient / gradient.square().mean().sqrt()  # uphill, where the slope is steepest
    slope = (gradient * direction).sum().item()
    size = 0.005
    with torch.no_grad():
        weight += size * direction
        above = total()
        weight -= 2 * size * direction
        below = total()
    assert slope == pytest.approx(((above - below) / (2 * size)).item(), rel=0.03)


def test_step_sizes_and_deviations_are_the_grid_s(roll: Callable[..., Any]) -> None:
    config = RolloutConfig(num_steps=4, noise_level=0.7)
    with torch.no_grad():
        out = replayed(
            roll(config=config, windows={"x_cot": Window(start=1, size=2), "x_edit": Window(start=0, size=1)})
        )
    torch.testing.assert_close(out["x_cot"].dt_BW, torch.full((4, 2), -0.25))
    torch.testing.assert_close(out["x_edit"].std_BW, torch.full((4, 1), 0.7))  # a, in the first step
    expected = 0.7 * torch.tensor([3.0, 1.0]).sqrt() * 0.5  # a sqrt(s / (1 - s)) sqrt(dt) at s = 3/4, 1/2
    torch.testing.assert_close(out["x_cot"].std_BW, expected.expand(4, 2))
