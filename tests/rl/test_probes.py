"""Evaluation by plain sampling: values per sample, probes and summaries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from gvcot import overlay
from gvcot.chain import Chain
from gvcot.data import scenes
from gvcot.data.images import to_tensor
from gvcot.model import flow
from gvcot.model.pretrained import Pretrained
from gvcot.sampler import Drawn
from gvcot.types import ChainConfig
from rewards.base import Reward
from rewards.config import RewardConfig
from rewards.registry import build_rewards
from rl.probes import Evaluation, _other_reasoning, evaluate, other_things, summary
from rl.scoring import provides

NAMES = ("mask_iou", "edit_accuracy", "preservation", "where")
NOT_DRAWN = cast(Drawn, None)
"""Only the shuffled probe looks at what was drawn."""


@pytest.fixture
def chain(policy: Pretrained) -> Chain:
    return Chain(ChainConfig(), policy.tokenizer, has_vit=True)


@pytest.fixture
def rewards(chain: Chain) -> dict[str, Reward]:
    return build_rewards({name: RewardConfig(type=name) for name in NAMES}, provides(chain))


def run(policy: Pretrained, chain: Chain, rewards: dict[str, Reward], num: int, **options: Any) -> Evaluation:
    samples = scenes.samples("val", range(num))
    return evaluate(policy, chain, rewards, samples, **({"num_steps": 2, "shift": 1.0, "seed": 0} | options))


def test_values_do_not_depend_on_the_batch(
    policy: Pretrained, chain: Chain, rewards: dict[str, Reward]
) -> None:
    whole = run(policy, chain, rewards, 5, probes=())
    cut = run(policy, chain, rewards, 5, batch=2, probes=())
    assert whole.images["x_edit"].shape == (5, 3, 64, 64)
    torch.testing.assert_close(cut.images["x_edit"], whole.images["x_edit"], atol=1e-4, rtol=0)
    for name in ("edit_accuracy", "preservation"):
        torch.testing.assert_close(cut.values[name], whole.values[name], atol=1e-3, rtol=0, equal_nan=True)


def test_the_share_of_missing_answers_is_there_in_every_part_of_an_evaluation(
    policy: Pretrained, chain: Chain, rewards: dict[str, Reward]
) -> None:
    """Also where no sample of a part is of the judge's tasks."""
    judge, samples = rewards["where"], scenes.samples("val", range(5))
    judge.may_fail, judge.tasks = True, frozenset({samples[0].task})
    values = run(policy, chain, rewards, 5, batch=1, probes=()).values
    asked = [sample.task == samples[0].task for sample in samples]
    assert not all(asked)
    assert values["missing/where"].isfinite().tolist() == asked
    assert "missing/edit_accuracy" not in values


def test_probes_score_edits_after_other_reasoning(
    policy: Pretrained, chain: Chain, rewards: dict[str, Reward]
) -> None:
    values = run(policy, chain, rewards, 3).values
    for probe in ("shuffled_x_cot", "true_x_cot"):
        assert values[f"probe/{probe}/preservation"].shape == (3,)
        assert not torch.equal(values[f"probe/{probe}/preservation"], values["preservation"])
        assert f"probe/{probe}/mask_iou" not in values  # not of the edit
    assert "canary/area_ratio" in values


PROBES = ("shuffled_x_cot", "true_x_cot", "counterfactual_x_cot")


def test_a_counterfactual_says_whether_the_edit_follows_the_paint(
    policy: Pretrained, chain: Chain, rewards: dict[str, Reward]
) -> None:
    samples = scenes.samples("val", range(12))
    values = evaluate(
        policy, chain, rewards, samples, num_steps=1, shift=1.0, seed=0, probes=("counterfactual_x_cot",)
    ).values
    exists = [len(other_things(s, 0)) > 0 for s in samples]
    assert True in exists
    assert False in exists
    follows_B, where_B = (values[f"probe/counterfactual_x_cot/{name}"] for name in ("follows", "where"))
    assert (~follows_B.isnan()).tolist() == (~where_B.isnan()).tolist() == exists
    known_B = torch.tensor(exists)
    assert ((follows_B + where_B)[known_B] <= 1).all()  # one thing can't be the other
    assert values["probe/counterfactual_x_cot/preservation"].isnan().tolist() == [not e for e in exists]


def test_a_counterfactual_paints_another_thing_and_nothing_else(policy: Pretrained, chain: Chain) -> None:
    samples = scenes.samples("val", range(12))
    other = _other_reasoning("counterfactual_x_cot", policy, chain, samples, NOT_DRAWN, 0)
    assert other.painted is not None
    for sample, things, valid, x_cot_ND in zip(
        samples, other.painted, other.valid_B.tolist(), other.x_cot_BND, strict=True
    ):
        assert valid == (len(things) > 0)
        if valid:
            assert len(things) == len(sample.referents)
            assert not set(things) & set(sample.referents)
            mask_HW = np.logical_or.reduce([sample.things[i].mask_HW for i in things])
            painted = overlay.paint(to_tensor([sample.source_HW3]), torch.from_numpy(mask_HW)[None], ["mask"])
            with torch.no_grad():
                expected_ND = flow.patchify(policy.codec.encode(painted), 2)[0]
            torch.testing.assert_close(x_cot_ND, expected_ND, atol=1e-4, rtol=0)


def test_other_things_are_drawn_by_seed_and_exist_or_not() -> None:
    (sample,) = scenes.samples("val", [0], world=scenes.WorldConfig(tasks=("color",)))
    assert other_things(sample, 3) == other_things(sample, 3)
    assert len({other_things(sample, seed) for seed in range(30)}) == len(sample.things) - 1
    pair = replace(sample, referents=(0, 1), things=sample.things[:4])
    assert {other_things(pair, seed) for seed in range(9)} == {(2, 3)}
    assert other_things(replace(pair, things=sample.things[:3]), 0) == ()  # one other for two
    assert other_things(replace(sample, referents=()), 0) == ()
    assert other_things(replace(sample, things=()), 0) == ()


def test_chains_whose_edit_sees_no_reasoning_have_no_probes(policy: Pretrained) -> None:
    for name in ("edit_first", "direct"):
        chain = Chain(ChainConfig(name=name), policy.tokenizer, has_vit=True)
        rewards = build_rewards({"preservation": RewardConfig(type="preservation")}, provides(chain))
        assert not [k for k in run(policy, chain, rewards, 2, probes=PROBES).values if "probe" in k]


def test_the_true_reasoning_of_a_blank_chain_is_the_source(policy: Pretrained) -> None:
    chain = Chain(ChainConfig(name="blank"), policy.tokenizer, has_vit=True)
    samples = scenes.samples("val", range(2))
    other = _other_reasoning("true_x_cot", policy, chain, samples, NOT_DRAWN, 0)
    with torch.no_grad():
        latent = policy.codec.encode(to_tensor([s.source_HW3 for s in samples]))
    assert torch.equal(other.x_cot_BND, flow.patchify(latent, 2))


def test_another_seed_draws_other_images(
    policy: Pretrained, chain: Chain, rewards: dict[str, Reward]
) -> None:
    one, same, other = (run(policy, chain, rewards, 1, seed=s, probes=()).images["x_edit"] for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_undefined_scores_are_nan_and_left_out_of_means(
    policy: Pretrained, chain: Chain, rewards: dict[str, Reward]
) -> None:
    first, second = scenes.samples("val", range(2))
    samples = [first, replace(second, change_mask_HW=None)]
    result = evaluate(policy, chain, rewards, samples, num_steps=1, shift=1.0, seed=0, probes=())
    preservation_B = result.values["preservation"]
    assert preservation_B.isnan().tolist() == [False, True]
    assert result.means()["preservation"] == pytest.approx(preservation_B[0].item())


def test_a_summary_has_a_mean_for_each_referral_and_task() -> None:
    samples = [
        replace(s, referral=referral, task=task)
        for s, referral, task in zip(
            scenes.samples("val", range(4)),
            ["spatial", "spatial", "property", "knowledge"],
            ["color", "removal", "color", "color"],
            strict=True,
        )
    ]
    values = {"mask_iou": torch.tensor([0.2, 0.4, 0.9, torch.nan])}
    out = summary(Evaluation(values=values), samples, ["mask_iou"])
    assert out["mask_iou"] == pytest.approx(0.5)
    assert out["mask_iou/referral/spatial"] == pytest.approx(0.3)
    assert out["mask_iou/referral/property"] == pytest.approx(0.9)
    assert "mask_iou/referral/knowledge" not in out  # nothing to take a mean of
    assert out["mask_iou/task/color"] == pytest.approx(0.55)
    assert out["mask_iou/task/removal"] == pytest.approx(0.4)
