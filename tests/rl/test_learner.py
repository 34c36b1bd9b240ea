"""One update of the policy, on a real rollout of a very small one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gvcot import distributed
from gvcot.model.compute import ComputeConfig, LoRAConfig
from gvcot.model.lora import add_lora, reset_lora
from gvcot.model.place import place
from gvcot.types import Trajectory
from rewards.config import RewardConfig
from rl.config import LossConfig, RLConfig, RLOptimConfig
from rl.credit import route
from rl.learner import Learner, Update
from rl.objectives import Drawn, build_objective
from rollout.replay import replay

NO_CLIPPING = 1e9


def learner_config(
    rolled: Any, *, loss: LossConfig | None = None, objective: Any = "reverse_window", **optim: Any
) -> RLConfig:
    return RLConfig(
        name="test",
        model="",
        steps=1,
        prompts_per_step=2,
        group_size=2,
        rewards={"mask_iou": RewardConfig(type="mask_iou")},
        rollout=rolled.config,
        objective=objective,
        loss=loss or LossConfig(),
        optim=RLOptimConfig(**({"warmup_steps": 0, "grad_clip": NO_CLIPPING} | optim)),
    )


def learner_of(
    rolled: Any, *, loss: LossConfig | None = None, objective: Any = "reverse_window", **optim: Any
) -> Learner:
    config = learner_config(rolled, loss=loss, objective=objective, **optim)
    model = rolled.policy.model
    reference = copy.deepcopy(model).requires_grad_(False) if config.loss.kl_coef > 0 else None
    return Learner(config, model, rolled.chain, world_size=1, reference=reference)


def update_of(rolled: Any, advantage_BK: Tensor, kept_BK: Tensor | None = None) -> Update:
    kept_BK = torch.ones_like(advantage_BK, dtype=torch.bool) if kept_BK is None else kept_BK
    return Update(
        drawn=Drawn(
            trajectory=rolled.drawn.trajectory,
            prompt_B=rolled.prompt_B,
            chain_seeds_B=list(range(len(rolled.prompt_B))),
        ),
        advantage_BK=advantage_BK,
        kept_BK=kept_BK,
        num_kept=float(kept_BK.sum()),
    )


def gradient(rolled: Any, data: Update, **optim: Any) -> Tensor:
    """The gradient of one update at the policy's present weights, which stay."""
    learner = learner_of(rolled, **({"lr": 0.0} | optim))
    learner.update(data, 0)
    return torch.cat([p.grad.flatten() for p in learner.parameters.values() if p.grad is not None])


def weights(rolled: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in rolled.policy.model.named_parameters()}


def rows_of(trajectory: Trajectory, rows: Tensor) -> Trajectory:
    phases = [
        replace(
            p,
            latents_BVND=p.latents_BVND[rows],
            logprob_BW=p.logprob_BW[rows],
            final_BND=p.final_BND[rows],
            feedback_vit_B3HW=None if p.feedback_vit_B3HW is None else p.feedback_vit_B3HW[rows],
        )
        for p in trajectory.phases
    ]
    return Trajectory(condition=trajectory.condition, phases=phases)


ADVANTAGE_BK = torch.tensor([[1.0, -0.5], [-1.0, 0.5], [0.3, 2.0], [-0.3, -2.0]])


@pytest.mark.parametrize("name", ["grpo_clip", "grpo_guard", "flow_dppo"])
def test_the_first_ratio_is_exactly_one_and_the_replay_agrees_with_the_rollout(
    roll: Callable[..., Any], name: str
) -> None:
    rolled = roll()
    metrics = learner_of(rolled, loss=LossConfig(name=name)).update(update_of(rolled, ADVANTAGE_BK), 0)
    for phase in ("x_cot", "x_edit"):
        assert metrics[f"{phase}/logprob_gap_max"] < 1e-5
        assert metrics[f"{phase}/kl_old"] == 0.0
        if name == "grpo_clip":
            assert metrics[f"{phase}/ratio_min"] == metrics[f"{phase}/ratio_max"] == 1.0
    assert metrics["skipped"] == 0.0
    assert metrics["grad_norm"] > 0


def test_with_several_updates_the_ratio_is_taken_to_the_policy_that_sampled(roll: Callable[..., Any]) -> None:
    rolled = roll()
    several = LossConfig(updates_per_rollout=2)
    frozen = learner_of(rolled, loss=several, lr=0.0).update(update_of(rolled, ADVANTAGE_BK), 0)
    assert frozen["x_edit/ratio_min"] == frozen["x_edit/ratio_max"] == 1.0
    learner = learner_of(rolled, loss=several, lr=1e-3)
    moved = learner.update(update_of(rolled, ADVANTAGE_BK), 0)
    assert moved["x_edit/ratio_max"] > 1.0 or moved["x_edit/ratio_min"] < 1.0
    assert moved["x_edit/kl_old"] > 0
    assert {int(s["step"]) for s in learner.optimizer.state.values()} == {2}


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_the_gradient_does_not_depend_on_micro_batches(roll: Callable[..., Any], micro_batch: int) -> None:
    rolled = roll()
    data = update_of(
        rolled, ADVANTAGE_BK, torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    )
    whole, cut = gradient(rolled, data, micro_batch=24), gradient(rolled, data, micro_batch=micro_batch)
    torch.testing.assert_close(cut, whole, atol=1e-4 * whole.abs().max().item(), rtol=1e-3)


def test_chains_without_a_signal_count_neither_above_nor_below_the_line(roll: Callable[..., Any]) -> None:
    rolled = roll()
    kept = torch.tensor([[True, True], [True, True], [True, True], [False, False]])
    loud = ADVANTAGE_BK.clone()
    loud[3] = 1e3
    first, second = (
        gradient(rolled, update_of(rolled, ADVANTAGE_BK, kept)),
        gradient(rolled, update_of(rolled, loud, kept)),
    )
    assert torch.equal(first, second)

    rows = torch.arange(3)
    rolled.drawn.trajectory = rows_of(rolled.drawn.trajectory, rows)
    rolled.prompt_B = rolled.prompt_B[rows]
    without = gradient(rolled, update_of(rolled, ADVANTAGE_BK[rows]))
    torch.testing.assert_close(first, without, atol=1e-4 * without.abs().max().item(), rtol=1e-3)


def test_an_update_without_any_signal_changes_nothing(roll: Callable[..., Any]) -> None:
    rolled = roll()
    before = weights(rolled)
    data = update_of(rolled, torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.bool))
    metrics = learner_of(rolled, lr=0.1).update(data, 0)
    assert metrics["loss"] == metrics["grad_norm"] == 0.0
    assert all(torch.equal(before[name], value) for name, value in weights(rolled).items())


def test_a_louder_mask_reward_leaves_the_edit_s_part_of_the_gradient_alone(roll: Callable[..., Any]) -> None:
    rolled = roll()
    advantage_BR, kept_BR = (
        torch.randn(4, 2, generator=torch.Generator().manual_seed(0)),
        torch.ones(4, 2).bool(),
    )

    def routed(scale: float) -> Tensor:
        scaled = advantage_BR * torch.tensor([scale, 1.0])  # mask_iou reaches x_cot, edit_accuracy x_edit
        return route(scaled, kept_BR, torch.ones(2), ["x_cot", "x_edit"], ["x_cot", "x_edit"], "causal")[0]

    plain, loud = routed(1.0), routed(3.0)
    assert torch.equal(plain[:, 1], loud[:, 1])
    assert not torch.equal(plain[:, 0], loud[:, 0])
    edit_off = torch.tensor([1.0, 0.0])
    of_edit = [
        gradient(rolled, update_of(rolled, a)) - gradient(rolled, update_of(rolled, a * edit_off))
        for a in (plain, loud)
    ]
    assert of_edit[0].abs().max() > 0
    torch.testing.assert_close(of_edit[1], of_edit[0], atol=1e-3 * of_edit[0].abs().max().item(), rtol=0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("phase", [0, 1])
def test_what_was_rewarded_becomes_likelier_and_what_was_punished_less(
    roll: Callable[..., Any], phase: int, sign: float
) -> None:
    rolled = roll()
    advantage_BK, kept_BK = torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.bool)
    advantage_BK[2, phase], kept_BK[2, phase] = sign, True
    learner_of(rolled, lr=1e-4).update(update_of(rolled, advantage_BK, kept_BK), 0)
    with torch.no_grad():
        out = replay(
            rolled.policy.model,
            rolled.chain,
            rolled.drawn.trajectory,
            rolled.prompt_B,
            torch.tensor([2]),
            rolled.config,
        )
    drawn = rolled.drawn.trajectory.phases[phase]
    assert sign * (out[drawn.name].logprob_BW[0] - drawn.logprob_BW[2]).sum() > 1e-5


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nft_moves_the_policy_towards_good_images_and_away_from_bad_ones(
    roll: Callable[..., Any], phase: int, sign: float
) -> None:
    rolled = roll()
    advantage_BK, kept_BK = torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.bool)
    advantage_BK[2, phase], kept_BK[2, phase] = sign, True
    learner = learner_of(rolled, lr=1e-4, objective="diffusion_nft")
    data = update_of(rolled, advantage_BK, kept_BK)

    def error() -> float:
        objective = build_objective(learner_config(rolled, objective="diffusion_nft"), rolled.chain)
        with torch.no_grad():
            said = objective.ask(rolled.policy.model, data.drawn, torch.tensor([2]))
        answer = said[rolled.chain.phases[phase].name]
        return (answer.velocity_BWND - answer.target_BWND).square().mean().item()

    before = error()
    learner.update(data, 0)
    assert sign * (before - error()) > 1e-6


def test_rejection_imitates_what_is_kept_whatever_its_advantage(roll: Callable[..., Any]) -> None:
    rolled = roll()
    kept_BK = torch.zeros(4, 2, dtype=torch.bool)
    kept_BK[2] = True
    learner = learner_of(rolled, lr=1e-4, objective="rejection")
    data = update_of(rolled, torch.zeros(4, 2), kept_BK)
    row = torch.tensor([2])

    def losses(advantage: float) -> list[float]:
        with torch.no_grad():
            said = learner.objective.ask(rolled.policy.model, data.drawn, row)
            return [
                learner.objective.loss(
                    phase,
                    row,
                    said[phase.name],
                    said[phase.name],
                    torch.tensor([advantage]),
                    kept_BK[row, :1],
                )[0]
                .mean()
                .item()
                for phase in data.drawn.trajectory.phases
            ]

    before = losses(0.0)
    assert losses(-5.0) == before
    learner.update(data, 0)
    assert all(after < start for after, start in zip(losses(0.0), before, strict=True))


def test_a_step_with_a_nan_gradient_is_skipped(roll: Callable[..., Any]) -> None:
    rolled = roll()
    before, broken = weights(rolled), ADVANTAGE_BK.clone()
    broken[0, 0] = math.nan
    learner = learner_of(rolled, lr=0.1)
    metrics = learner.update(update_of(rolled, broken), 0)
    assert metrics["skipped"] == 1.0
    assert all(torch.equal(before[name], value) for name, value in weights(rolled).items())
    assert learner.update(update_of(rolled, ADVANTAGE_BK), 1)["skipped"] == 0.0
    assert all(value.isfinite().all() for value in weights(rolled).values())


def test_only_the_generation_expert_moves_where_asked(roll: Callable[..., Any]) -> None:
    rolled = roll()
    before = weights(rolled)
    learner_of(rolled, lr=1e-2, train="generation").update(update_of(rolled, ADVANTAGE_BK), 0)
    moved = {name for name, value in weights(rolled).items() if not torch.equal(before[name], value)}
    assert "llm2vae.weight" in moved
    assert all(
        any(part in name for part in ("_moe_gen", "vae2llm", "llm2vae", "time_embedder")) for name in moved
    )


def test_only_the_upper_half_of_the_decoder_moves_where_asked(roll: Callable[..., Any]) -> None:
    rolled = roll()
    before = weights(rolled)
    learner_of(rolled, lr=1e-2, train="upper").update(update_of(rolled, ADVANTAGE_BK), 0)
    moved = {name for name, value in weights(rolled).items() if not torch.equal(before[name], value)}
    inner = [name for name in before if "model.layers." in name]
    layers = {name: int(name.split(".layers.")[1].split(".")[0]) for name in inner}
    num_layers = max(layers.values()) + 1
    assert {layers[name] for name in moved if name in layers} == set(range(num_layers // 2, num_layers))
    ends = ("language_model.model.norm_moe_gen.weight", "llm2vae.weight", "llm2vae.bias")
    assert {name for name in moved if "layers" not in name} == set(ends)


def test_the_distance_to_the_starting_policy_is_0_there_and_grows(roll: Callable[..., Any]) -> None:
    rolled = roll()
    learner = learner_of(rolled, lr=1e-3, loss=LossConfig(kl_coef=1.0))
    first = learner.update(update_of(rolled, ADVANTAGE_BK), 0)
    second = learner.update(update_of(rolled, ADVANTAGE_BK), 1)
    assert first["x_edit/velocity_kl"] == 0.0
    assert second["x_edit/velocity_kl"] > 0.0


def test_the_average_lags_behind_the_weights_and_is_what_is_shown(roll: Callable[..., Any]) -> None:
    rolled = roll()
    name = "llm2vae.weight"
    start = weights(rolled)[name]
    learner = learner_of(rolled, lr=1e-2, ema_decay=0.75)
    learner.update(update_of(rolled, ADVANTAGE_BK), 0)
    now = weights(rolled)[name]
    with learner.averaged():
        torch.testing.assert_close(weights(rolled)[name], 0.75 * start + 0.25 * now)
    assert torch.equal(weights(rolled)[name], now)


def test_a_restored_learner_goes_on_bit_for_bit(roll: Callable[..., Any]) -> None:
    rolled = roll()
    learner = learner_of(rolled, lr=1e-3)
    learner.update(update_of(rolled, ADVANTAGE_BK), 0)
    state = learner.state()
    learner.update(update_of(rolled, ADVANTAGE_BK), 1)
    straight, average = weights(rolled), {n: a.clone() for n, a in learner.average.items()}
    again = learner_of(rolled, lr=1e-3)
    again.restore(state)
    again.update(update_of(rolled, ADVANTAGE_BK), 1)
    assert all(torch.equal(straight[name], value) for name, value in weights(rolled).items())
    assert all(torch.equal(average[name], value) for name, value in again.average.items())


def test_the_learning_rate_warms_up(roll: Callable[..., Any]) -> None:
    rolled = roll()
    learner = learner_of(rolled, lr=1e-3, warmup_steps=4)
    for step, expected in ((0, 2.5e-4), (3, 1e-3), (9, 1e-3)):
        learner.update(update_of(rolled, ADVANTAGE_BK), step)
        assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_a_policy_with_adapters_is_held_to_itself_without_them(roll: Callable[..., Any]) -> None:
    rolled = roll()
    lora = LoRAConfig(rank=2, also=("llm2vae",))
    config = replace(learner_config(rolled, loss=LossConfig(kl_coef=1.0), lr=1e-2), lora=lora)
    start = {name: p.detach().clone() for name, p in rolled.policy.model.named_parameters()}
    add_lora(rolled.policy.model, lora)
    reset_lora(rolled.policy.model, seed=0)
    learner = Learner(config, rolled.policy.model, rolled.chain, world_size=1)
    data = update_of(rolled, ADVANTAGE_BK)
    first = learner.update(data, 0)
    trained = {name: p.detach().clone() for name, p in learner.parameters.items()}
    second = learner.update(data, 1)
    assert first["x_edit/velocity_kl"] == 0.0
    assert second["x_edit/velocity_kl"] > 0.0
    for name, value in rolled.policy.model.named_parameters():
        if name not in learner.parameters:
            assert torch.equal(value, start[name.replace(".base_layer", "")]), name
    assert any(not torch.equal(p, trained[n]) for n, p in learner.parameters.items() if "llm2vae" in n)

    resumed = Learner(config, rolled.policy.model, rolled.chain, world_size=1)
    state = learner.state()
    with torch.no_grad():
        for parameter in resumed.parameters.values():
            parameter.zero_()
    resumed.restore(state)
    assert set(state["weights"]) == set(learner.parameters)
    for name, parameter in resumed.parameters.items():
        assert torch.equal(parameter, state["weights"][name])


def test_borrowing_the_start_s_weights_leaves_no_trace_in_a_sharded_policy(roll: Callable[..., Any]) -> None:
    """A root of FSDP2 keeps its gathered parameters after a forward pass; those of the start mustn't stay."""
    rolled = roll()
    model, lora = rolled.policy.model, LoRAConfig(rank=2, also=("llm2vae",))
    config = replace(learner_config(rolled, loss=LossConfig(kl_coef=1.0)), lora=lora)
    alone = not dist.is_initialized()
    mesh = distributed.init_process_group("cpu")
    place(model, device="cpu", compute=ComputeConfig(dtype="bfloat16"), lora=lora, mesh=mesh)
    learner = Learner(config, model, rolled.chain, world_size=1)
    data, rows = update_of(rolled, ADVANTAGE_BK), torch.arange(4)
    with torch.no_grad():
        learner.parameters["llm2vae.weight"].mul_(2.0)
        distributed.forget_gathered(model)
        moved = learner.objective.ask(model, data.drawn, rows)["x_edit"].velocity_BWND
        start = learner._reference_velocities(data, rows)
        again = learner.objective.ask(model, data.drawn, rows)["x_edit"].velocity_BWND
    assert start is not None
    assert torch.equal(moved, again)
    difference = (start["x_edit"].velocity_BWND * 2 - moved).abs().max() / moved.abs().max()
    assert difference < 0.05  # twice the head, twice the velocity, but for the head's bias
    if alone:
        dist.destroy_process_group()
