"""From raw results to one table: order, missing scores, weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gvcot import overlay
from gvcot.errors import ConfigError, RewardError
from gvcot.types import RewardResult
from rewards import base, mix
from rewards.base import Reward
from rewards.config import GateConfig, RewardConfig, check_gates

NAN, INF = float("nan"), float("inf")


def result(values, valid=None, **parts):
    valid = [True] * len(values) if valid is None else valid
    return RewardResult(
        raw_B=torch.tensor(values),
        valid_B=torch.tensor(valid),
        parts={name: torch.tensor(part) for name, part in parts.items()},
    )


def configs(**weights):
    return {name: RewardConfig(type=name, weight=weight) for name, weight in weights.items()}


def test_overall_by_hand():
    """Weights 1 and 3; the second chain misses the second component, the third misses both."""
    raw = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    overall = mix.overall(raw, valid, mix.weights(configs(a=1, b=3)))
    assert overall[:2].tolist() == [0.25, 1.0]
    assert overall[2].isnan()


@given(
    weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=4),
    scale=st.floats(0.1, 10),
    seed=st.integers(0, 10_000),
)
def test_overall_stays_between_the_components_and_ignores_the_scale_of_weights(weights, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(5, len(weights), generator=generator)
    valid = torch.rand(5, len(weights), generator=generator) < 0.7
    valid[:, 0] = True
    overall = mix.overall(raw, valid, torch.tensor(weights))
    low = torch.where(valid, raw, INF).amin(dim=1)
    high = torch.where(valid, raw, -INF).amax(dim=1)
    assert ((overall >= low - 1e-5) & (overall <= high + 1e-5)).all()
    assert overall.tolist() == pytest.approx(
        mix.overall(raw, valid, scale * torch.tensor(weights)).tolist(), abs=1e-5
    )


def test_a_weight_of_zero_is_scored_but_does_not_count():
    raw, valid = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert mix.overall(raw, valid, mix.weights(configs(a=1, b=0))).item() == 1


def test_geometric_mean_by_hand():
    """4^(1/4) * 0.25^(3/4); a score of 0 leaves next to nothing; what is missing is left out."""
    raw = torch.tensor([[4.0, 0.25], [1.0, 0.0], [0.3, 0.0]])
    valid = torch.tensor([[True, True], [True, True], [True, False]])
    mean = mix.geometric_mean(raw, valid, mix.weights(configs(a=1, b=3)))
    assert mean.tolist() == pytest.approx([0.5, 1e-6**0.75, 0.3], rel=1e-4)


def gate_b_on_a(above: float, floor: float = 0.0):
    return {
        "b": RewardConfig(type="b", gate=GateConfig(reward="a", above=above, floor=floor)),
        "a": RewardConfig(type="a", weight=0.0),
    }


def test_gates_by_hand():
    """Passes above the threshold only; below it the floor, not the raw score; missing where the judge is."""
    raw = torch.tensor([[0.9, 0.6], [0.9, 0.5], [0.9, 0.0], [0.0, 0.9]])
    valid = torch.tensor([[True, True], [True, True], [True, False], [False, True]])
    out, valid_out, shut = mix.gated(raw, valid, gate_b_on_a(0.5, floor=-1.0))
    assert out[:2, 0].tolist() == [pytest.approx(0.9), -1.0]
    assert valid_out[:, 0].tolist() == [True, True, False, False]
    assert shut[:, 0].tolist() == [False, True, False, False]
    assert torch.equal(out[:, 1], raw[:, 1])
    assert torch.equal(valid_out[:, 1], valid[:, 1])


def test_a_gate_hangs_on_another_reward_of_the_recipe():
    for other in ("nothing", "b"):
        with pytest.raises(ConfigError, match=rf"rewards.b.gate.reward: there is no other reward '{other}'"):
            check_gates({"b": RewardConfig(type="b", gate=GateConfig(reward=other, above=0.5))})
    check_gates(gate_b_on_a(0.5))


def test_a_gate_may_ask_for_a_part():
    """Fidelity counts only where the judge's semantic consistency passes, whatever its overall score is."""
    rewards = {
        "fidelity": RewardConfig(type="x", gate=GateConfig(reward="judge", part="sc", above=5.0)),
        "judge": RewardConfig(type="y"),
    }
    raw_BR = torch.tensor([[0.9, 0.2], [0.8, 0.9], [0.7, 0.5]])
    valid_BR = torch.tensor([[True, True], [True, True], [True, False]])
    parts = {"judge/sc": torch.tensor([6.0, 4.0, torch.nan]), "other/sc": torch.zeros(3)}
    out_BR, valid_out_BR, shut_BR = mix.gated(raw_BR, valid_BR, rewards, parts)
    assert out_BR[:2, 0].tolist() == pytest.approx([0.9, 0.0])
    assert valid_out_BR.tolist() == [[True, True], [True, True], [False, False]]
    assert shut_BR.tolist() == [[False, False], [True, False], [False, False]]
    wrong = GateConfig(reward="judge", part="pq", above=5.0)
    with pytest.raises(RewardError, match="part 'pq' of the reward judge, which gives sc"):
        mix.gated(raw_BR, valid_BR, rewards | {"fidelity": RewardConfig(type="x", gate=wrong)}, parts)


def test_what_training_depends_on():
    gate = GateConfig(reward="b", above=0.0)
    rewards = {
        "a": RewardConfig(type="x", gate=gate),
        "b": RewardConfig(type="x", weight=0.0),
        "c": RewardConfig(type="x", weight=0.0, gate=GateConfig(reward="d", above=0.0)),
        "d": RewardConfig(type="x", weight=0.0),
    }
    assert mix.optimised(rewards) == {"a", "b"}


def test_a_gated_reward_reaches_as_far_as_its_gate(make_batch):
    rewards = {"b": PaintedArea(), "a": Preference()}
    assert mix.reaches(rewards, gate_b_on_a(0.5), ["x_cot", "x_edit"]) == ["x_edit", "x_edit"]
    assert mix.reaches(rewards, configs(b=1, a=1), ["x_cot", "x_edit"]) == ["x_cot", "x_edit"]


class PaintedArea(Reward):
    """Share of the image that is painted."""

    name, requires, reaches = "painted_area", frozenset({"x_cot"}), "x_cot"

    def score(self, batch):
        area_B = batch.painted_BHW().float().mean(dim=(1, 2))
        return base.result(area_B, twice=2 * area_B)


class Preference(Reward):
    """Share of the chain's group that is darker than it: a comparison of pairs."""

    name, requires, reaches = "preference", frozenset({"x_edit"}), "x_edit"

    def score(self, batch):
        light_B = batch.image("x_edit").mean(dim=(1, 2, 3))
        same_BB = batch.group_B[:, None] == batch.group_B
        wins_BB = same_BB & (light_B[:, None] > light_B)
        return base.result(wins_BB.sum(1) / (same_BB.sum(1) - 1))


def test_a_reward_may_compare_the_chains_of_a_group(make_batch, square):
    shades = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.2, 0.1])[:, None, None, None].expand(-1, 3, 16, 16)
    batch = make_batch([square(2, 2, 6, 6)] * 6, images={"x_edit": shades})
    batch = replace(batch, group_B=torch.tensor([0, 0, 0, 1, 1, 1]))
    result = mix.score_all({"preference": Preference()}, batch)["preference"]
    assert result.raw_B.tolist() == [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]


def test_a_reward_for_some_tasks_sees_no_other(make_batch, square):
    batch = make_batch([square(2, 2, 6, 6)] * 4, images={"x_cot": painted(make_batch, square, 4)})
    tasks = ["removal", "color", "removal", "pose"]
    batch = replace(
        batch, samples=[replace(s, task=task) for s, task in zip(batch.samples, tasks, strict=True)]
    )
    reward = PaintedArea()
    everywhere = reward.score(batch)
    reward.tasks = frozenset({"removal", "pose"})
    some = mix.score_all({"area": reward}, batch)["area"]
    assert some.valid_B.tolist() == [True, False, True, True]
    assert torch.equal(some.raw_B[some.valid_B], everywhere.raw_B[some.valid_B])
    assert some.parts["twice"].isnan().tolist() == [False, True, False, False]
    assert mix.applies(reward, batch.samples).tolist() == some.valid_B.tolist()
    reward.tasks = frozenset({"motion"})
    assert not mix.score_all({"area": reward}, batch)["area"].valid_B.any()


def painted(make_batch, square, num):
    source = make_batch([square(2, 2, 6, 6)] * num).source_rt_B3HW
    return overlay.paint(source, torch.from_numpy(np.stack([square(2, 2, 6, 6)] * num)), ["mask"] * num)


def test_too_many_missing_scores_stop_the_run():
    valid = torch.tensor([[True, False], [True, True], [True, False], [True, True]])
    every = torch.ones_like(valid)
    assert mix.missing_share(valid, every).tolist() == [0, 0.5]
    mix.check_missing(valid, every, ("iou", "judge"), 0.5)
    with pytest.raises(RewardError, match=r"reward judge: 50% of 4 scores are missing, at most 40%.*judge"):
        mix.check_missing(valid, every, ("iou", "judge"), 0.4)


def test_only_scores_that_could_exist_are_missing():
    valid = torch.tensor([[True], [False], [False], [False]])
    applies = torch.tensor([[True], [True], [False], [False]])
    assert mix.missing_share(valid, applies).tolist() == [0.5]
    assert mix.missing_share(valid, torch.zeros_like(valid)).tolist() == [0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (result([1.0, 2.0]), r"raw_B is \(2,\), expected a tensor \(3,\)"),
        (result([1.0] * 3, [True] * 2), r"valid_B is \(2,\)"),
        (result([1.0] * 3, part=[1.0]), r"part is \(1,\)"),
        (RewardResult(raw_B=torch.ones(3, 1), valid_B=torch.ones(3).bool()), r"raw_B is \(3, 1\)"),
        (RewardResult(raw_B=torch.ones(3), valid_B=torch.ones(3)), "expected floats and bool"),
        (RewardResult(raw_B=torch.ones(3).int(), valid_B=torch.ones(3).bool()), "expected floats and bool"),
        ([1.0, 2.0, 3.0], "returned list, expected RewardResult"),
        (RewardResult(raw_B=[1.0] * 3, valid_B=torch.ones(3).bool()), "raw_B is list"),
    ],
)
def test_results_of_the_wrong_form_are_refused(wrong, message):
    with pytest.raises(RewardError, match=message):
        mix.check_result("mine", wrong, 3)
