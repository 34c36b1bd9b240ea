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
from gvcot.types import EditSample
from rewards.base import RewardBatch
from rewards.localization import (
    BoxIoU,
    Format,
    MaskIoU,
    MultiRegion,
    SoftDice,
    boundary,
    box_iou,
    mask_iou,
    matched_share,
    multi_region,
)


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


def test_a_batch_may_be_large():
    masks = torch.ones(300, 8, 8, dtype=torch.bool)
    masks[:, 4:] = False
    everything = torch.ones_like(masks)
    assert mask_iou(masks, everything)[0].tolist() == [0.5] * 300
    assert box_iou(masks, everything).tolist() == [0.5] * 300
    assert multi_region(masks, everything)[0].tolist() == [0.5] * 300


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


def rectangle(seed):
    """bool (1, 12, 10): a rectangle, or nothing."""
    (top, bottom), (left, right) = (sorted(x) for x in np.random.default_rng(seed).integers(0, 11, (2, 2)))
    mask = torch.zeros(1, 12, 10, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    return mask


def test_box_iou_by_hand(make_batch, square):
    """True: 4 x 4. Painted: two 2 x 2 corners of an 8 x 4 box; the boxes share 16 of 32 pixels, the masks 4
    of 20."""
    corners = square(4, 4, 6, 6) | square(6, 10, 8, 12)
    batch = painted(make_batch([square(4, 4, 8, 8)]), [corners])
    assert BoxIoU(min_area=1).score(batch).raw_B.item() == pytest.approx(1 / 2)
    assert MaskIoU(min_area=1).score(batch).raw_B.item() == pytest.approx(4 / 20)


@given(one=st.integers(0, 10_000), other=st.integers(0, 10_000))
def test_boxes_of_rectangles_overlap_as_the_rectangles_do(one, other):
    one, other = rectangle(one), rectangle(other)
    assert box_iou(one, other).item() == pytest.approx(mask_iou(one, other)[0].item())


@given(seed=st.integers(0, 10_000), density=st.floats(0, 0.3))
def test_scores_of_regions_are_symmetric_within_0_and_1_and_ignore_flips(seed, density):
    rng = np.random.default_rng(seed)
    one, other = (torch.from_numpy(rng.random((3, 12, 10)) < density) for _ in range(2))
    for score in (box_iou, lambda a, b: multi_region(a, b)[0]):
        got = score(one, other)
        assert ((got >= 0) & (got <= 1)).all()
        assert got.tolist() == pytest.approx(score(other, one).tolist())
        # A flip changes the order in which parts are found.
        assert got.tolist() == pytest.approx(score(one.flip(1, 2), other.flip(1, 2)).tolist())
        assert score(one, one).tolist() == [1.0, 1.0, 1.0]


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_parts_are_matched_in_the_best_way_whatever_their_order(seed, rows, columns):
    from itertools import permutations

    rng = np.random.default_rng(seed)
    iou = rng.random((rows, columns))
    small, large = min(rows, columns), max(rows, columns)
    wide = iou if rows <= columns else iou.T
    best = max(sum(wide[i, chosen[i]] for i in range(small)) for chosen in permutations(range(large), small))
    assert matched_share(iou) == pytest.approx(best / large)
    assert matched_share(iou[rng.permutation(rows)][:, rng.permutation(columns)]) == pytest.approx(
        best / large
    )


def test_multi_region_by_hand(make_batch, square):
    """Two true 4 x 4 regions. Painted: one exactly; the other's right half and as much beside it (8 of 24);
    and a third that means nothing. (1 + 1/3) / 3."""
    truth = square(0, 0, 4, 4) | square(10, 4, 14, 8)
    paint = square(0, 0, 4, 4) | square(10, 6, 14, 10) | square(0, 12, 3, 15)
    got = MultiRegion().score(painted(make_batch([truth]), [paint]))
    assert got.raw_B.item() == pytest.approx((1 + 1 / 3) / 3)
    assert {name: part.item() for name, part in got.parts.items()} == {"painted_parts": 3, "true_parts": 2}


def test_multi_region_wants_every_region_and_each_by_itself(make_batch, square):
    one, two = square(0, 0, 4, 4), square(0, 8, 4, 12)
    attempts = [one | two, one, square(0, 0, 4, 12), two | square(10, 0, 14, 4), square(10, 0, 14, 12)]
    batch = painted(make_batch([one | two] * len(attempts)), attempts)
    # Both; one of two; one part over both (16 of 48); one right and one elsewhere; neither.
    assert MultiRegion().score(batch).raw_B.tolist() == pytest.approx([1, 0.5, 1 / 6, 0.5, 0])


def test_multi_region_of_the_truth_is_one_however_the_regions_lie(make_batch, square):
    """Regions that touch are painted as one; specks of a region can't be read, so they aren't asked for."""
    touching = square(0, 0, 4, 4) | square(4, 4, 8, 8)
    with_speck = square(0, 0, 4, 4) | square(10, 10, 12, 12)
    batch = painted(make_batch([touching, with_speck]), [touching, with_speck])
    got = MultiRegion().score(batch)
    assert got.raw_B.tolist() == [1, 1]
    assert got.parts["true_parts"].tolist() == got.parts["painted_parts"].tolist() == [1, 1]
    only_speck = MultiRegion().score(painted(make_batch([square(1, 1, 3, 3)]), [square(1, 1, 3, 3)]))
    assert not only_speck.valid_B.any()


@pytest.mark.parametrize("reward", [MaskIoU(), BoxIoU(), MultiRegion()])
def test_edge_table_of_region_rewards(make_batch, square, reward):
    """(painted, true) -> score, None where it is missing; as in docs/rewards.md."""
    none, some, everything = square(0, 0, 0, 0), square(4, 4, 8, 12), square(0, 0, 16, 16)
    nearly = ~square(0, 0, 1, 5)  # 251 of 256 pixels
    table = [
        (none, none, 1),
        (none, some, 0),
        (some, none, 0),
        (everything, none, 0),
        (everything, some, 32 / 256),
        (some, everything, None),
        (everything, everything, None),
        (none, nearly, None),
    ]
    batch = painted(make_batch([true for _, true, _ in table]), [paint for paint, _, _ in table])
    got = reward.score(batch)
    scores = [raw if ok else None for raw, ok in zip(got.raw_B.tolist(), got.valid_B.tolist(), strict=True)]
    assert scores == [None if want is None else pytest.approx(want) for _, _, want in table]


@pytest.mark.parametrize("reward", [SoftDice(), Format()])
def test_graded_and_format_scores_of_global_edits_are_missing(make_batch, square, reward):
    some, everything = square(4, 4, 8, 12), square(0, 0, 16, 16)
    nearly = ~square(0, 0, 1, 5)
    batch = painted(make_batch([some, everything, nearly]), [some, everything, square(0, 0, 0, 0)])
    got = reward.score(batch)
    assert got.valid_B.tolist() == [True, False, False]
    assert got.raw_B[0] == pytest.approx(1, abs=1e-3)


def test_the_share_from_which_a_region_is_everywhere_is_an_option(make_batch, square):
    batch = painted(make_batch([square(0, 0, 16, 8), square(0, 0, 16, 16)]), [square(0, 0, 16, 16)] * 2)
    assert MaskIoU(global_share=0.5).score(batch).valid_B.tolist() == [False, False]
    assert MaskIoU(global_share=None).score(batch).raw_B.tolist() == [0.5, 1]


def faint(batch, masks, shares):
    """The batch, had its chains painted `masks` at these shares of the fill."""
    full = painted(batch, masks).images["x_cot"]
    drawn = torch.lerp(batch.source_rt_B3HW, full, torch.tensor(shares)[:, None, None, None])
    return replace(batch, images={**batch.images, "x_cot": drawn})


def test_groups_without_readable_paint_are_graded_by_their_faint_paint(make_batch, square):
    """Two groups of two: nothing readable in the first, one chain painting in the second."""
    truth, beside = square(4, 4, 9, 9), square(4, 6, 9, 11)
    batch = replace(make_batch([truth] * 4), group_B=torch.tensor([0, 0, 1, 1]))
    batch = faint(batch, [truth, truth, truth, beside], [0.2, 0.4, 0.4, 1.0])
    assert MaskIoU().score(batch).raw_B.tolist() == pytest.approx([0, 0, 0, 15 / 35])
    got = MaskIoU(fallback="soft_dice").score(batch)
    assert got.raw_B.tolist() == pytest.approx([0.1 * 2 / 15, 0.1 * 10 / 19, 0, 15 / 35], abs=1e-4)
    assert got.parts["fallback"].tolist() == [1, 1, 0, 0]
    half = MaskIoU(fallback="soft_dice", fallback_scale=0.5).score(batch)
    assert half.raw_B.tolist() == pytest.approx([0.5 * 2 / 15, 0.5 * 10 / 19, 0, 15 / 35], abs=1e-4)


def test_boundary_fallback_is_graded_where_faint_paint_misses_the_region(make_batch, square):
    truth = square(0, 0, 4, 4)
    batch = replace(make_batch([truth] * 4), group_B=torch.zeros(4, dtype=torch.long))
    masks = [truth, square(0, 5, 4, 9), square(12, 12, 16, 16), square(0, 0, 0, 0)]
    batch = faint(batch, masks, [0.4] * 4)
    on, near, far, nothing = MaskIoU(fallback="boundary").score(batch).raw_B.tolist()
    assert on == pytest.approx(0.1)
    assert on > near > far > 0
    assert nothing == 0
    assert MaskIoU(fallback="soft_dice").score(batch).raw_B[1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("fallback", ["soft_dice", "boundary"])
def test_nothing_painted_where_nothing_is_meant_needs_no_fallback(make_batch, square, fallback):
    batch = faint(make_batch([square(0, 0, 0, 0)]), [square(4, 4, 9, 9)], [0.4])
    assert MaskIoU(fallback=fallback).score(batch).raw_B.item() == 1


def test_boundary_by_hand():
    """A line of 5 pixels, the first is true: distances 0 to 4. Coverage 1 at distance 1, 0.5 at 4: mean 2 of
    4."""
    true = torch.tensor([[[True, False, False, False, False]]])
    coverage = torch.tensor([[[0.0, 1.0, 0.0, 0.0, 0.5]]])
    assert boundary(coverage, true).item() == pytest.approx(0.5)
    assert boundary(torch.zeros(1, 1, 5), true).item() == 0
    assert boundary(coverage, ~torch.ones_like(true)).item() == 0


@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0.01, 1.0),
    fallback=st.sampled_from(["soft_dice", "boundary"]),
)
def test_fallback_never_exceeds_its_scale(seed, scale, fallback):
    rng = np.random.default_rng(seed)
    truth = rng.random((16, 16)) < rng.random()
    source = torch.zeros(1, 3, 16, 16)
    drawn = (
        source
        + 0.2 * torch.from_numpy(rng.random((1, 3, 16, 16))).float() * torch.tensor([1, -1, 1])[:, None, None]
    )
    sample = EditSample(
        sample_id="a", source_HW3=np.zeros((16, 16, 3), dtype=np.uint8), instruction="", task="color",
        referral="spatial", mask_HW=truth, regions=(),
    )  # fmt: skip
    batch = RewardBatch(
        samples=[sample], images={"x_cot": drawn}, source_rt_B3HW=source, target_rt_B3HW=None,
        group_B=torch.zeros(1, dtype=torch.long),
    )  # fmt: skip
    got = MaskIoU(fallback=fallback, fallback_scale=scale).score(batch)
    assert got.parts["fallback"].item() == truth.any()
    assert 0 <= got.raw_B.item() <= (scale + 1e-6 if truth.any() else 1)


def test_soft_dice_of_nothing_on_nothing_is_one(make_batch, square):
    assert SoftDice().score(make_batch([square(0, 0, 0, 0)])).raw_B.item() == 1


def test_box_paint_of_an_insertion_is_fully_right(make_batch, square):
    batch = make_batch([square(4, 4, 9, 9)])
    drawn = overlay.paint(batch.source_rt_B3HW, batch.mask_BHW(), ["box"])
    batch = replace(batch, images={"x_cot": drawn})
    for reward in (MaskIoU(), BoxIoU(), MultiRegion(), SoftDice(), Format()):
        assert reward.score(batch).raw_B.item() == pytest.approx(1.0, abs=1e-4)


def test_the_edit_does_not_matter_to_localization(make_batch, square):
    batch = painted(make_batch([square(4, 4, 9, 9)]), [square(4, 5, 9, 9)])
    other = replace(batch, images={**batch.images, "x_edit": -batch.source_rt_B3HW})
    for reward in (MaskIoU(), BoxIoU(), MultiRegion(), SoftDice(), Format()):
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
    with pytest.raises(ConfigError, match="global_share is 0"):
        BoxIoU(global_share=0)
    with pytest.raises(ConfigError, match="unknown fallback 'dice'; did you mean 'soft_dice'"):
        MaskIoU(fallback="dice")
    with pytest.raises(ConfigError, match="fallback_scale is 2"):
        MaskIoU(fallback="boundary", fallback_scale=2)


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
