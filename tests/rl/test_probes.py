"""Evaluation by plain sampling: values per sample, probes and summaries."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gvcot.chain import Chain
from gvcot.data import scenes
from gvcot.model.pretrained import Pretrained
from gvcot.types import ChainConfig
from rewards.base import Reward
from rewards.config import RewardConfig
from rewards.registry import build_rewards
from rl.probes import Evaluation, evaluate, summary
from rl.scoring import provides

NAMES = ("mask_iou", "edit_accuracy", "preservation")


@pytest.fixture
def chain(policy: Pretrained) -> Chain:
    return Chain(ChainConfig(), policy.tokenizer, has_vit=True)


@pytest.fixture
def rewards(chain: Chain) -> dict[str, Reward]:
    return build_rewards({name: RewardConfig(type=name) for name in NAMES}, provides(chain))


def run(
    policy: Pretrained, chain: Chain, rewards: dict[str, Reward], num: int, **options: int | bool
) -> Evaluation:
    samples = scenes.samples("val", range(num))
    return evaluate(policy, chain, rewards, samples, **({"num_steps": 2, "shift": 1.0, "seed": 0} | options))


def test_values_do_not_depend_on_the_batch(
    policy: Pretrained, chain: Chain, rewards: dict[str, Reward]
) -> None:
    whole = run(policy, chain, rewards, 5, probes=False)
    cut = run(policy, chain, rewards, 5, batch=2, probes=False)
    assert whole.images["x_edit"].shape == (5, 3, 64, 64)
    torch.testing.assert_close(cut.images["x_edit"], whole.images["x_edit"], atol=1e-4, rtol=0)
    for name in ("edit_accuracy", "preservation"):
        torch.testing.assert_close(cut.values[name], whole.values[name], atol=1e-3, rtol=0, equal_nan=True)


def test_probes_score_edits_after_other_reasoning(
    policy: Pretrained, chain: Chain, rewards: dict[str, Reward]
) -> None:
    values = run(policy, chain, rewards, 3).values
    for probe in ("shuffled_x_cot", "true_x_cot"):
        assert values[f"probe/{probe}/preservation"].shape == (3,)
        assert not torch.equal(values[f"probe/{probe}/preservation"], values["preservation"])
        assert f"probe/{probe}/mask_iou" not in values  # not of the edit
    assert "canary/area_ratio" in values


def test_another_seed_draws_other_images(
    policy: Pretrained, chain: Chain, rewards: dict[str, Reward]
) -> None:
    one, same, other = (
        run(policy, chain, rewards, 1, seed=s, probes=False).images["x_edit"] for s in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_undefined_scores_are_nan_and_left_out_of_means(
    policy: Pretrained, chain: Chain, rewards: dict[str, Reward]
) -> None:
    first, second = scenes.samples("val", range(2))
    samples = [first, replace(second, change_mask_HW=None)]
    result = evaluate(policy, chain, rewards, samples, num_steps=1, shift=1.0, seed=0, probes=False)
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
    assert math.isnan(out["mask_iou/referral/knowledge"])
    assert out["mask_iou/task/color"] == pytest.approx(0.55)
    assert out["mask_iou/task/removal"] == pytest.approx(0.4)
