"""Canaries sing when they should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gvcot import overlay
from gvcot.errors import RewardError
from rewards import canaries
from rewards.config import RewardConfig
from rewards.registry import REWARDS, build_rewards

EVERYTHING = {"x_cot", "x_edit", "mask", "change_mask", "target", "things"}
EXACT = [name for name in REWARDS if name not in ("vlm_judge", "lpips", "clip_direction")]
"""Rewards that know the truth, or need nothing that may be missing here."""


@pytest.fixture
def rewards():
    return build_rewards({name: RewardConfig(type=name) for name in EXACT}, EVERYTHING)


def edited(batch, images):
    return replace(batch, images={**batch.images, "x_edit": images})


def test_truth_earns_everything_and_the_source_no_accuracy(make_batch, square, rewards):
    batch = canaries.with_truth(make_batch([square(4, 4, 10, 10)]))
    best = {name: reward.score(batch).raw_B.item() for name, reward in rewards.items()}
    assert best == pytest.approx(dict.fromkeys(EXACT, 1.0), abs=1e-4)
    copied = {name: got.raw_B.item() for name, got in canaries.unedited(rewards, batch).items()}
    assert copied["edit_accuracy"] == copied["where"] == copied["x_cot_change_iou"] == 0
    assert copied["preservation"] == 1
    assert copied["mask_iou"] == best["mask_iou"]


def test_truth_needs_a_target(make_batch, square):
    with pytest.raises(RewardError, match="no targets"):
        canaries.with_truth(make_batch([square(4, 4, 10, 10)], has_target=False))


def test_area_ratio_sees_paint_that_claims_everything(make_batch, square):
    batch = make_batch([square(4, 4, 8, 8)])
    everything = torch.ones(1, 16, 16, dtype=torch.bool)
    drawn = overlay.paint(batch.source_rt_B3HW, everything, ["mask"])
    assert canaries.area_ratio(replace(batch, images={"x_cot": drawn})).item() == 16


def test_leak_counts_paint_left_in_the_edit(make_batch, square):
    batch = make_batch([square(4, 4, 8, 8)])
    leaky = overlay.paint(batch.source_rt_B3HW, batch.mask_BHW(), ["mask"])
    assert canaries.overlay_leak(edited(batch, leaky)).item() == pytest.approx(16 / 256)
    assert canaries.overlay_leak(edited(batch, batch.target_rt_B3HW)).item() == 0
    # A target that truly turns magenta-like is not a leak.
    wanted = replace(batch, target_rt_B3HW=leaky)
    assert canaries.overlay_leak(edited(wanted, leaky)).item() == 0


def test_white_saturated_and_noisy_edits_show(make_batch, square):
    batch = make_batch([square(4, 4, 8, 8)])
    ramp = torch.linspace(-0.5, 0.5, 16).expand(1, 3, 16, 16)
    batch = edited(replace(batch, source_rt_B3HW=ramp), ramp)
    assert canaries.white(batch).item() == canaries.saturation(batch).item() == 0
    assert canaries.roughness(batch).item() == pytest.approx(1.0)
    assert canaries.white(edited(batch, torch.ones_like(ramp))).item() == 1
    assert canaries.saturation(edited(batch, -torch.ones_like(ramp))).item() == 1
    grid = ramp + 0.2 * (torch.arange(16) % 2)
    assert canaries.roughness(edited(batch, grid)).item() > 2


def test_change_is_split_by_the_change_mask(make_batch, square):
    batch = make_batch([square(4, 4, 8, 8)])
    drawn = batch.source_rt_B3HW + torch.where(batch.mask_BHW()[:, None], 0.4, 0.1)
    assert canaries.change(edited(batch, drawn), inside=True).item() == pytest.approx(0.2, abs=1e-5)
    assert canaries.change(edited(batch, drawn), inside=False).item() == pytest.approx(0.05, abs=1e-5)


def test_spread_is_zero_for_a_collapsed_group_only(make_batch, square):
    batch = replace(make_batch([square(4, 4, 8, 8)] * 4), group_B=torch.tensor([7, 7, 3, 3]))
    values = torch.tensor([0.5, 0.5, 0.1, 0.5])[:, None, None, None].expand(4, 3, 16, 16)
    assert canaries.group_spread(edited(batch, values)).tolist() == pytest.approx([0, 0, 0.2, 0.2], abs=1e-6)


def test_all_canaries_give_one_finite_value_per_chain(make_batch, square):
    batch = make_batch(
        [square(4, 4, 8, 8), square(0, 0, 16, 16)], change_masks=[None, np.ones((16, 16), bool)]
    )
    values = canaries.canaries(batch)
    assert len(values) == 8
    for value in values.values():
        assert value.shape == (2,)
        assert value.isfinite().all()


def test_canaries_of_a_chain_without_a_reasoning_image(make_batch, square):
    batch = make_batch([square(4, 4, 8, 8)])
    values = canaries.canaries(replace(batch, images={"x_edit": batch.source_rt_B3HW}))
    assert "area_ratio" not in values
    assert "overlay_leak" in values
