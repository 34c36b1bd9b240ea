"""Rewards of the reasoning image, against hand-computed values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gvcot import overlay
from gvcot.errors import ConfigError, DataError, RewardError
from rewards.localization import Format, MaskIoU, SoftDice, mask_iou


def painted(batch, masks):
    """The batch, had its chains painted `masks`."""
    mask = torch.from_numpy(np.stack(masks))
    drawn = overlay.paint(batch.source_rt_B3HW, mask, ["mask"] * len(masks))
    return replace(batch, images={**batch.images, "x_cot": drawn})


def test_iou_by_hand(make_batch, square):
    """True 4x4 = 16 px; painted 4x4 shifted by two columns: 8 shared of 24."""
    batch = painted(make_batch([square(4, 4, 8, 8)]), [square(4, 6, 8, 10)])
    got = MaskIoU().score(batch)
    assert got.raw_B.tolist() == pytest.approx([1 / 3])
    assert {name: part.item() for name, part in got.parts.items()} == pytest.approx(
        {"precision": 0.5, "recall": 0.5, "area_ratio": 1.0}
    )
    assert got.valid_B.all()


def test_paint_twice_too_large_halves_precision_only(make_batch, square):
    batch = painted(make_batch([square(4, 4, 8, 8)]), [square(4, 4, 12, 8)])
    got = MaskIoU().score(batch)
    assert got.raw_B.item() == pytest.approx(0.5)
    assert got.parts["precision"].item() == pytest.approx(0.5)
    assert got.parts["recall"].item() == pytest.approx(1.0)
    assert got.parts["area_ratio"].item() == pytest.approx(2.0)


def test_iou_edge_table():
    """(painted, true) -> (IoU, precision, recall, area ratio)."""
    none, some = torch.zeros(1, 8, 8, dtype=torch.bool), torch.zeros(1, 8, 8, dtype=torch.bool)
    some[:, :2, :5] = True
    table = [
        (none, none, (1.0, 1.0, 1.0, 1.0)),
        (none, some, (0.0, 0.0, 0.0, 0.0)),
        (some, none, (0.0, 0.0, 0.0, 10.0)),
        (some, some, (1.0, 1.0, 1.0, 1.0)),
        (some, ~some, (0.0, 0.0, 0.0, 10 / 54)),
    ]
    for one, other, expected in table:
        iou, parts = mask_iou(one, other)
        got = (iou.item(), *(parts[name].item() for name in ("precision", "recall", "area_ratio")))
        assert got == pytest.approx(expected)


@given(seed=st.integers(0, 10_000), density=st.floats(0, 1))
def test_iou_equals_counting_pixels(seed, density):
    rng = np.random.default_rng(seed)
    one, other = (torch.from_numpy(rng.random((3, 9, 7)) < density) for _ in range(2))
    shared, union = (one & other).sum(dim=(1, 2)), (one | other).sum(dim=(1, 2))
    expected = torch.where(union > 0, shared / union.clamp_min(1), torch.ones(3))
    assert mask_iou(one, other)[0].tolist() == pytest.approx(expected.tolist())


@given(seed=st.integers(0, 10_000))
def test_iou_is_symmetric_and_ignores_flips(seed):
    rng = np.random.default_rng(seed)
    one, other = (torch.from_numpy(rng.random((2, 9, 7)) < 0.4) for _ in range(2))
    iou = mask_iou(one, other)[0]
    assert torch.equal(iou, mask_iou(other, one)[0])
    assert torch.equal(iou, mask_iou(one.flip(1, 2), other.flip(1, 2))[0])


@pytest.mark.parametrize("reward", [MaskIoU(), SoftDice()])
def test_better_paint_scores_higher(make_batch, square, reward):
    truth = square(4, 4, 9, 9)
    everything = np.ones_like(truth)
    attempts = [truth, square(4, 4, 9, 8), square(2, 2, 12, 12), everything, ~truth, ~everything]
    scores = reward.score(painted(make_batch([truth] * len(attempts)), attempts)).raw_B.tolist()
    exact, small_miss, oversized, all_painted, opposite, nothing = scores
    assert exact == pytest.approx(1.0, abs=1e-4)
    assert exact > small_miss > oversized > all_painted > opposite
    assert opposite == pytest.approx(0.0, abs=1e-4)
    assert nothing == pytest.approx(0.0, abs=1e-4)


def test_soft_dice_is_graded_where_iou_sees_nothing(make_batch, square):
    """Paint at 20 and 40 percent of the fill: below the threshold, so IoU is 0, yet Dice tells them apart."""
    batch = make_batch([square(4, 4, 9, 9)] * 2)
    full = painted(batch, [square(4, 4, 9, 9)] * 2)
    faint = torch.lerp(
        batch.source_rt_B3HW, full.images["x_cot"], torch.tensor([0.2, 0.4])[:, None, None, None]
    )
    batch = replace(batch, images={"x_cot": faint})
    assert MaskIoU().score(batch).raw_B.tolist() == [0, 0]
    # c = (0.2 - 0.15) / 0.7 = 1/14 and 5/14; Dice = 2 * 25 c / (25 c + 25)
    assert SoftDice().score(batch).raw_B.tolist() == pytest.approx([2 / 15, 10 / 19], abs=1e-4)


def test_soft_dice_of_nothing_on_nothing_is_one(make_batch, square):
    assert SoftDice().score(make_batch([square(0, 0, 0, 0)])).raw_B.item() == 1


def test_box_paint_of_an_insertion_is_fully_right(make_batch, square):
    batch = make_batch([square(4, 4, 9, 9)])
    drawn = overlay.paint(batch.source_rt_B3HW, batch.mask_BHW(), ["box"])
    batch = replace(batch, images={"x_cot": drawn})
    for reward in (MaskIoU(), SoftDice(), Format()):
        assert reward.score(batch).raw_B.item() == pytest.approx(1.0, abs=1e-4)


def test_the_edit_does_not_matter_to_localization(make_batch, square):
    batch = painted(make_batch([square(4, 4, 9, 9)]), [square(4, 5, 9, 9)])
    other = replace(batch, images={**batch.images, "x_edit": -batch.source_rt_B3HW})
    for reward in (MaskIoU(), SoftDice(), Format()):
        assert torch.equal(reward.score(batch).raw_B, reward.score(other).raw_B)
        assert reward.reaches == "x_cot"


def test_format_wants_clear_paint_on_an_unchanged_source(make_batch, square):
    truth = square(4, 4, 10, 10)
    batch = make_batch([truth] * 6)
    source, clear = batch.source_rt_B3HW, painted(batch, [truth] * 6).images["x_cot"]
    mushy = torch.lerp(source, clear, 0.5)
    green = torch.where(torch.from_numpy(truth), torch.tensor([-1.0, 1.0, -1.0])[:, None, None], source[0])
    noise = torch.rand(source[0].shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    everything = painted(batch, [np.ones_like(truth)] * 6).images["x_cot"]
    drawn = torch.stack([clear[0], mushy[0], green, noise, everything[0], source[0]])
    scores = Format().score(replace(batch, images={"x_cot": drawn})).raw_B.tolist()
    assert scores[0] == pytest.approx(1.0, abs=1e-4)
    assert scores[1:3] == [0, 0]
    assert 0 <= scores[3] < 0.2
    assert scores[4:] == [0, 0]


def test_format_by_hand(make_batch, square):
    """36 px painted, 9 of them half-heartedly: 247/256 readable, and 27/36 of the paint."""
    truth = square(4, 4, 10, 10)
    batch = make_batch([truth])
    drawn = painted(batch, [truth]).images["x_cot"].clone()
    drawn[..., 4:7, 4:7] = torch.lerp(batch.source_rt_B3HW, drawn, 0.5)[..., 4:7, 4:7]
    got = Format().score(replace(batch, images={"x_cot": drawn}))
    assert got.parts["readable"].item() == pytest.approx(247 / 256)
    assert got.raw_B.item() == pytest.approx(247 / 256 * 27 / 36)


def test_format_does_not_ask_which_region(make_batch, square):
    batch = painted(make_batch([square(2, 2, 6, 6)]), [square(9, 9, 14, 14)])
    assert Format().score(batch).raw_B.item() == pytest.approx(1.0, abs=1e-4)


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match=r"threshold is 1.5, expected a number in \(0, 1\]"):
        MaskIoU(threshold=1.5)
    with pytest.raises(ConfigError, match="min_area is -1"):
        MaskIoU(min_area=-1)
    with pytest.raises(ConfigError, match="tolerance is 0"):
        Format(tolerance=0)


def test_images_and_masks_of_other_sizes_are_explained(make_batch, square):
    batch = make_batch([square(4, 4, 9, 9)])
    small = replace(batch, images={"x_cot": batch.source_rt_B3HW[..., :8]})
    with pytest.raises(RewardError, match="decode all phases at the sample's size"):
        MaskIoU().score(small)
    odd = replace(batch, samples=[replace(batch.samples[0], mask_HW=np.zeros((8, 8), dtype=bool))])
    with pytest.raises(DataError, match=r"mask of test/0 is \(8, 8\)"):
        MaskIoU().score(odd)
    with pytest.raises(RewardError, match="no image 'x_cot'"):
        MaskIoU().score(replace(batch, images={"x_edit": batch.source_rt_B3HW}))
