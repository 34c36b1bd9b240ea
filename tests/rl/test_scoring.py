"""What rewards get to see, and the canaries beside them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gvcot.chain import Chain
from gvcot.data import scenes
from gvcot.data.images import to_tensor
from gvcot.model.pretrained import Pretrained
from gvcot.types import ChainConfig, RewardResult
from rewards.base import RewardBatch
from rewards.config import RewardConfig
from rewards.registry import build_rewards
from rl.scoring import first_of_each_group, provides, reward_batch, valid_mean, watch

PROMPT_B = torch.tensor([0, 0, 0, 1, 1, 1])


@pytest.fixture
def batch(policy: Pretrained) -> RewardBatch:
    images = {name: torch.rand(6, 3, 64, 64) * 2 - 1 for name in ("x_cot", "x_edit")}
    return reward_batch(policy.codec, scenes.samples("val", range(2)), PROMPT_B, images)


def round_trip(policy: Pretrained, index: int) -> Tensor:
    return policy.codec.decode(
        policy.codec.encode(to_tensor([scenes.generate(0, index, split="val").source_HW3]))
    )[0]


def test_a_chain_provides_its_phases_and_the_sample_s_truth(policy: Pretrained) -> None:
    direct = Chain(ChainConfig(name="direct"), policy.tokenizer, has_vit=True)
    assert provides(direct) == {"x_edit", "mask", "change_mask", "target", "things", "region_caption"}
    assert "x_cot" in provides(Chain(ChainConfig(), policy.tokenizer, has_vit=True))


def test_chains_are_scored_beside_their_own_sample(batch: RewardBatch, policy: Pretrained) -> None:
    assert [s.sample_id for s in batch.samples] == ["scenes/val/0/0"] * 3 + ["scenes/val/0/1"] * 3
    for row, index in ((0, 0), (2, 0), (3, 1)):
        torch.testing.assert_close(batch.source_rt_B3HW[row], round_trip(policy, index))
    assert torch.equal(batch.group_B, PROMPT_B)


def test_one_chain_of_each_group_stands_for_it(batch: RewardBatch) -> None:
    first = first_of_each_group(batch)
    assert [s.sample_id for s in first.samples] == ["scenes/val/0/0", "scenes/val/0/1"]
    assert torch.equal(first.images["x_edit"], batch.images["x_edit"][[0, 3]])


def test_the_unedited_source_earns_nothing_for_its_edit_and_all_for_preservation(batch: RewardBatch) -> None:
    configs = {name: RewardConfig(type=name) for name in ("mask_iou", "edit_accuracy", "preservation")}
    values = watch(build_rewards(configs, {"x_cot", "x_edit", "mask", "change_mask", "target"}), batch)
    assert values["unedited/edit_accuracy"] == pytest.approx(0.0, abs=1e-5)
    assert values["unedited/preservation"] == pytest.approx(1.0, abs=1e-5)
    assert "unedited/mask_iou" not in values  # is fixed once x_cot is drawn
    assert {"area_ratio", "overlay_leak", "group_spread"} <= values.keys()


def test_means_are_over_valid_scores(batch: RewardBatch) -> None:
    valid = torch.tensor([True, False, True])
    assert valid_mean(RewardResult(raw_B=torch.tensor([1.0, 99.0, 2.0]), valid_B=valid)) == 1.5
    assert math.isnan(valid_mean(RewardResult(raw_B=torch.zeros(3), valid_B=torch.zeros(3).bool())))
