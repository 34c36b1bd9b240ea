"""Where, what given where, and what was painted, against hand-computed values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gvcot import overlay
from gvcot.data import scenes
from gvcot.data.images import to_tensor
from gvcot.errors import ConfigError
from gvcot.types import Region
from rewards.base import RewardBatch
from rewards.where import WhatGivenWhere, Where, XCotChangeIoU


@pytest.fixture
def three(square):
    """Three things of 16 pixels each."""
    masks = [square(1, 1, 5, 5), square(1, 9, 5, 13), square(9, 1, 13, 5)]
    return tuple(Region(box=(0, 0, 1, 1), mask_HW=mask) for mask in masks)


def of_things(batch, things, referents, task="color"):
    """The batch, had its samples these things, and each its own referents."""
    samples = [
        replace(s, things=things, referents=r, task=task)
        for s, r in zip(batch.samples, referents, strict=True)
    ]
    return replace(batch, samples=samples)


def changed(batch, things, amounts):
    """The batch, had each chain changed thing k by amounts[k] of the pixel range."""
    edit = batch.source_rt_B3HW.clone()
    for thing, amount in zip(things, amounts, strict=True):
        edit[..., torch.from_numpy(thing.mask_HW)] += 2 * amount
    return replace(batch, images={**batch.images, "x_edit": edit})


def test_the_most_changed_thing_has_to_be_the_referent(make_batch, three):
    """Changes .2, .1 and 0 of the pixel range."""
    batch = make_batch([three[0].mask_HW] * 3)
    batch = of_things(changed(batch, three, (0.2, 0.1, 0.0)), three, [(0,), (1,), (2,)])
    got = Where().score(batch)
    assert got.raw_B.tolist() == [1, 0, 0]
    assert got.valid_B.all()
    assert got.parts["change"].tolist() == pytest.approx([0.2, 0.1, 0.0], abs=1e-6)
    assert got.parts["chance"].tolist() == pytest.approx([1 / 3] * 3)


def test_the_change_is_a_mean_over_pixels_and_rgb_not_a_sum(make_batch, three, square):
    """A quarter of the pixels by .4 in one channel is .4 / 12 = .033; all pixels by .04 is more, though the
    first thing's silhouette is four times as large in the second case."""
    large = replace(three[1], mask_HW=square(1, 8, 9, 16))
    things = (three[0], large)
    batch = make_batch([three[0].mask_HW])
    edit = batch.source_rt_B3HW.clone()
    edit[:, 0, 1:3, 1:3] += 0.8
    edit[:, :, 1:9, 8:16] += 0.08
    batch = of_things(replace(batch, images={"x_edit": edit}), things, [(1,)])
    assert Where().score(batch).raw_B.item() == 1
    assert Where().score(batch).parts["change"].item() == pytest.approx(0.04, abs=1e-6)
    edit[:, 0, 1:3, 1:3] += 0.4  # .6 / 12 = .05
    assert Where().score(batch).raw_B.item() == 0


def test_an_extraction_changes_its_referent_least(make_batch, three):
    batch = changed(make_batch([three[0].mask_HW] * 3), three, (0.2, 0.1, 0.0))
    got = Where().score(of_things(batch, three, [(2,), (1,), (0,)], task="extraction"))
    assert got.raw_B.tolist() == [1, 0, 0]


def test_two_referents_are_both_of_the_two_most_changed(make_batch, three):
    batch = changed(make_batch([three[0].mask_HW] * 3), three, (0.1, 0.2, 0.0))
    got = Where().score(of_things(batch, three, [(0, 1), (1, 2), (2, 0)]))
    assert got.raw_B.tolist() == [1, 0, 0]
    assert got.parts["chance"].tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("task", ["color", "extraction"])
def test_the_unedited_source_is_nowhere(make_batch, three, task):
    got = Where().score(of_things(make_batch([three[0].mask_HW]), three, [(0,)], task))
    assert got.raw_B.item() == 0
    assert got.valid_B.all()


def test_where_is_missing_where_there_is_nothing_to_be_right_about(make_batch, three):
    batch = changed(make_batch([three[0].mask_HW] * 3), three, (0.2, 0.1, 0.0))
    batch = of_things(batch, three, [(), (0,), (0, 1, 2)])
    batch = replace(
        batch, samples=[*batch.samples[:1], replace(batch.samples[1], things=()), batch.samples[2]]
    )
    for reward in (Where(), WhatGivenWhere()):
        assert reward.score(batch).valid_B.tolist() == [False] * 3


def test_what_counts_only_where_the_place_is_right(make_batch, three):
    """Source -.2, target .6 inside the first thing, edit .4 there: accuracy (.4 - .1) / (.4 + .1)."""
    mask = three[0].mask_HW
    batch = make_batch([mask] * 3, change_masks=[mask, mask, None])
    batch = of_things(changed(batch, three, (0.3, 0.1, 0.0)), three, [(0,), (1,), (0,)])
    got = WhatGivenWhere().score(batch)
    assert got.valid_B.tolist() == [True, False, False]  # right; elsewhere; no accuracy
    assert got.raw_B[0].item() == pytest.approx(0.6, abs=1e-5)


def test_paint_and_change_overlap_by_hand(make_batch, square):
    """Painted 4 x 4; changed the same, shifted by two columns: 8 of 24. Then below the threshold: none of 16.
    A single changed pixel is a speck."""
    batch = make_batch([square(4, 4, 8, 8)] * 4)
    edit = batch.source_rt_B3HW.clone()
    edit[0, :, 4:8, 6:10] += 0.3  # .15 of the range
    edit[1, :, 4:8, 4:8] += 0.18  # .09
    edit[2, 1, 4:8, 4:8] += 0.22  # .11 in one channel is a change
    edit[3, :, 12, 12] += 1.0
    drawn = overlay.paint(batch.source_rt_B3HW, batch.mask_BHW(), ["mask"] * 4)
    got = XCotChangeIoU().score(replace(batch, images={"x_cot": drawn, "x_edit": edit}))
    assert got.raw_B.tolist() == pytest.approx([1 / 3, 0, 1, 0])
    assert got.valid_B.all()
    assert got.parts["changed"].tolist() == pytest.approx([16 / 256, 0, 16 / 256, 0])
    assert got.parts["painted"].tolist() == pytest.approx([16 / 256] * 4)
    loose = XCotChangeIoU(threshold=0.08).score(replace(batch, images={"x_cot": drawn, "x_edit": edit}))
    assert loose.raw_B[1].item() == 1


def test_neither_paint_nor_change_is_missing(make_batch, square):
    got = XCotChangeIoU().score(make_batch([square(4, 4, 8, 8)]))
    assert got.valid_B.tolist() == [False]


def test_what_an_extraction_paints_is_not_what_it_changes(make_batch, square):
    batch = make_batch([square(4, 4, 8, 8)])
    drawn = overlay.paint(batch.source_rt_B3HW, batch.mask_BHW(), ["mask"])
    batch = replace(batch, images={**batch.images, "x_cot": drawn})
    assert XCotChangeIoU().score(batch).valid_B.tolist() == [True]
    batch = replace(batch, samples=[replace(batch.samples[0], task="extraction")])
    assert XCotChangeIoU().score(batch).valid_B.tolist() == [False]


def test_a_threshold_that_is_no_share_is_refused():
    with pytest.raises(ConfigError, match=r"threshold is 0, expected a number in \(0, 1\]"):
        XCotChangeIoU(threshold=0)


def test_the_truth_is_in_the_right_place():
    """Of samples of every task, whose exact target is taken for the edit."""
    score: dict[str, list[float]] = {}
    samples = scenes.samples("bench", range(228))
    source, target = (
        to_tensor([image for s in samples if (image := getattr(s, name)) is not None])
        for name in ("source_HW3", "target_HW3")
    )
    batch = RewardBatch(
        samples=samples,
        images={"x_edit": target},
        source_rt_B3HW=source,
        target_rt_B3HW=target,
        group_B=torch.arange(len(samples)),
    )
    where, what = Where().score(batch), WhatGivenWhere().score(batch)
    for sample, value, valid in zip(samples, where.raw_B.tolist(), where.valid_B.tolist(), strict=True):
        assert valid == (sample.task not in ("insertion", "background"))
        if valid:
            score.setdefault(sample.task, []).append(value)
    assert len(score) == 17
    assert min(np.mean(values) for values in score.values()) > 0.9  # a lamp's light lies outside the lamp
    assert np.mean([v for values in score.values() for v in values]) > 0.99
    assert what.raw_B[what.valid_B].min() == 1
