"""Rewards of the edited image, against hand-computed values."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gvcot.errors import ConfigError
from rewards.fidelity import EditAccuracy, Preservation


def edited(batch, images):
    return replace(batch, images={**batch.images, "x_edit": images})


def inside_set_to(batch, values):
    """Per chain, the source with its mask's pixels set to one grey value in [-1, 1]."""
    grey = torch.tensor(values)[:, None, None, None].expand_as(batch.source_rt_B3HW)
    return torch.where(batch.mask_BHW()[:, None], grey, batch.source_rt_B3HW)


def test_accuracy_by_hand(make_batch, square):
    """Source -0.2, target 0.6: change 0.4 of the pixel range. (0.4 - E) / (0.4 + E)."""
    batch = make_batch([square(4, 4, 9, 9)] * 4)
    drawn = inside_set_to(batch, [0.6, 0.4, -0.2, -1.0])  # E = 0, 0.1, 0.4, 0.8
    got = EditAccuracy().score(edited(batch, drawn))
    assert got.raw_B.tolist() == pytest.approx([1.0, 0.6, 0.0, -1 / 3], abs=1e-5)
    assert got.parts["error"].tolist() == pytest.approx([0, 0.1, 0.4, 0.8], abs=1e-5)
    assert got.parts["source_error"].tolist() == pytest.approx([0.4] * 4, abs=1e-5)


def test_accuracy_orders_right_copy_and_wrong(make_batch, square):
    batch = make_batch([square(4, 4, 9, 9)] * 3)
    wrong = inside_set_to(batch, [-0.9] * 3)[0]
    drawn = torch.stack([batch.target_rt_B3HW[0], batch.source_rt_B3HW[0], wrong])
    right, copy, bad = EditAccuracy().score(edited(batch, drawn)).raw_B.tolist()
    assert right == 1
    assert copy == 0
    assert bad < 0


def test_accuracy_looks_inside_only_and_preservation_outside_only(make_batch, square):
    batch = make_batch([square(4, 4, 9, 9)])
    inside = batch.mask_BHW()[:, None].expand_as(batch.source_rt_B3HW)
    noise = torch.rand(inside.shape, generator=torch.Generator().manual_seed(0))
    damaged_outside = edited(batch, torch.where(inside, batch.target_rt_B3HW, noise))
    damaged_inside = edited(batch, torch.where(inside, noise, batch.source_rt_B3HW))
    assert EditAccuracy().score(damaged_outside).raw_B.item() == 1
    assert Preservation().score(damaged_inside).raw_B.item() == 1
    assert EditAccuracy().score(damaged_inside).raw_B.item() < 0.5
    assert Preservation().score(damaged_outside).raw_B.item() < 0.1


@given(value=st.floats(-1, 1), seed=st.integers(0, 1000))
def test_accuracy_is_bounded_and_falls_with_the_error(value, seed):
    from gvcot.types import EditSample
    from rewards.base import RewardBatch

    mask = np.ones((6, 6), dtype=bool)
    blank = np.zeros((6, 6, 3), dtype=np.uint8)
    sample = EditSample(
        sample_id="a", source_HW3=blank, instruction="", task="color", referral="spatial", mask_HW=mask,
        regions=(), target_HW3=blank, change_mask_HW=mask,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    source, target = (torch.rand(1, 3, 6, 6, generator=generator) * 2 - 1 for _ in range(2))
    near, far = torch.lerp(target, source, 0.3), torch.lerp(target, source, 0.7)
    wild = torch.full_like(source, value)
    scores = [
        EditAccuracy()
        .score(
            RewardBatch(
                samples=[sample], images={"x_edit": x}, source_rt_B3HW=source, target_rt_B3HW=target,
                group_B=torch.zeros(1, dtype=torch.long),
            )
        )
        .raw_B.item()
        for x in (near, far, wild)
    ]  # fmt: skip
    assert scores[0] == pytest.approx(0.7 / 1.3, abs=1e-5)
    assert scores[1] == pytest.approx(0.3 / 1.7, abs=1e-5)
    assert -1 <= scores[2] <= 1


def test_accuracy_is_missing_where_it_is_undefined(make_batch, square):
    mask = square(4, 4, 9, 9)
    batch = make_batch([mask] * 3, change_masks=[mask, None, square(0, 0, 2, 2)])
    # A change as asked for; unknown where; no change where it was asked for.
    got = EditAccuracy().score(batch)
    assert got.valid_B.tolist() == [True, False, False]
    assert got.raw_B.isfinite().all()


def test_accuracy_is_missing_for_samples_without_a_target(make_batch, square):
    batch = make_batch([square(4, 4, 9, 9)] * 2)
    batch = replace(batch, samples=[batch.samples[0], replace(batch.samples[1], target_HW3=None)])
    assert EditAccuracy().score(batch).valid_B.tolist() == [True, False]
    none = EditAccuracy().score(make_batch([square(4, 4, 9, 9)], has_target=False))
    assert not none.valid_B.any()
    assert none.raw_B.isfinite().all()


@pytest.mark.parametrize(("psnr", "expected"), [(20, 0.368), (25, 0.570), (30, 0.729), (35, 0.837)])
def test_preservation_over_the_range_of_a_small_model(make_batch, square, psnr, expected):
    batch = make_batch([square(4, 4, 9, 9)])
    shifted = batch.source_rt_B3HW + 2 * 10 ** (-psnr / 20)
    got = Preservation().score(edited(batch, shifted))
    assert got.raw_B.item() == pytest.approx(expected, abs=1e-3)
    assert got.parts["psnr_db"].item() == pytest.approx(psnr, abs=1e-3)


def test_preservation_of_a_copy_is_one_and_of_a_lost_bystander_is_not(make_batch, square):
    batch = make_batch([square(4, 4, 9, 9)])
    bystander = batch.source_rt_B3HW.clone()
    bystander[..., 11:15, 11:15] += 1.0
    copy, harmed = (Preservation().score(edited(batch, x)) for x in (batch.source_rt_B3HW, bystander))
    assert copy.raw_B.item() == 1
    assert copy.parts["psnr_db"].item() == pytest.approx(60)
    # 16 of 231 outside pixels are off by half the range: rmse = 0.5 * sqrt(16 / 231)
    assert harmed.raw_B.item() == pytest.approx(math.exp(-5 * math.sqrt(16 / 231)), abs=1e-4)


def test_preservation_is_missing_where_everything_may_change(make_batch, square):
    full = square(0, 0, 16, 16)
    batch = make_batch([full] * 3, change_masks=[full, None, square(4, 4, 9, 9)])
    got = Preservation().score(batch)
    assert got.valid_B.tolist() == [False, False, True]
    assert got.raw_B.isfinite().all()


def test_a_chains_score_does_not_depend_on_its_neighbours(make_batch, square):
    masks = [square(4, 4, 9, 9), square(1, 1, 14, 5), square(8, 8, 16, 16)]
    batch = make_batch(masks)
    drawn = torch.rand(batch.source_rt_B3HW.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for reward in (EditAccuracy(), Preservation()):
        together = reward.score(edited(batch, drawn)).raw_B
        alone = [
            reward.score(edited(make_batch([m]), drawn[i : i + 1])).raw_B.item() for i, m in enumerate(masks)
        ]
        assert together.tolist() == pytest.approx(alone, abs=1e-6)


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match="tau is 0, expected a number > 0"):
        Preservation(tau=0)
    with pytest.raises(ConfigError, match="min_change is -1"):
        EditAccuracy(min_change=-1)
