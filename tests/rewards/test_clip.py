"""Rewards by CLIP embeddings, with the small network that is shipped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gvcot.clip_model import load_clip
from gvcot.data import scenes
from gvcot.data.images import to_tensor
from gvcot.errors import ConfigError
from rewards.base import RewardBatch
from rewards.clip import ClipDirection, ClipImage

TASKS = ("color", "removal", "change", "insertion", "state")


@pytest.fixture(scope="module")
def batch() -> RewardBatch:
    """48 edits of val scenes, drawn as they should be."""
    samples = scenes.samples("val", range(48), world=scenes.WorldConfig(tasks=TASKS))
    target = to_tensor([s.target_HW3 for s in samples if s.target_HW3 is not None])
    return RewardBatch(
        samples=samples,
        images={"x_edit": target},
        source_rt_B3HW=to_tensor([s.source_HW3 for s in samples]),
        target_rt_B3HW=target,
        group_B=torch.arange(len(samples)),
    )


def edited(batch, images):
    return replace(batch, images={"x_edit": images})


def test_clip_image_is_the_cosine_of_the_embeddings(batch):
    clip = load_clip()
    got = ClipImage(region="image").score(batch)
    with torch.no_grad():
        edit, source = clip.images(batch.images["x_edit"]), clip.images(batch.source_rt_B3HW)
    expected = torch.nn.functional.cosine_similarity(edit, source)
    assert got.raw_B.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert got.valid_B.all()
    same = ClipImage(region="image").score(edited(batch, batch.source_rt_B3HW))
    assert same.raw_B.tolist() == pytest.approx([1] * len(batch.samples), abs=1e-5)


def test_clip_image_does_not_see_inside_the_change_mask(batch):
    reward = ClipImage()
    change = torch.from_numpy(np.stack([s.change_mask_HW for s in batch.samples]))[:, None]
    wild = torch.where(change, -batch.source_rt_B3HW, batch.source_rt_B3HW)
    assert reward.score(edited(batch, wild)).raw_B.tolist() == pytest.approx(
        [1] * len(batch.samples), abs=1e-5
    )
    assert ClipImage(region="image").score(edited(batch, wild)).raw_B.mean().item() < 0.95


def test_clip_image_falls_with_what_is_harmed_outside(batch):
    """Right edits, edits that lose a bystander, other scenes."""
    lost = batch.images["x_edit"].clone()
    for row, sample in enumerate(batch.samples):
        bystander = next(i for i in range(len(sample.things)) if i not in sample.referents)
        lost[row][:, torch.from_numpy(sample.things[bystander].mask_HW)] = 0.0
    other = batch.images["x_edit"].roll(1, dims=0)
    means = [
        ClipImage().score(edited(batch, x)).raw_B.mean().item() for x in (batch.images["x_edit"], lost, other)
    ]
    assert means[0] == pytest.approx(1, abs=1e-4)
    assert means[1] < 0.97
    assert means[2] < 0.6


def test_clip_image_is_missing_where_the_outside_is_unknown_or_nowhere(make_batch, square):
    full = square(0, 0, 16, 16)
    batch = make_batch([full] * 3, change_masks=[full, None, square(4, 4, 9, 9)])
    assert ClipImage().score(batch).valid_B.tolist() == [False, False, True]
    assert ClipImage(region="image").score(batch).valid_B.all()
    assert ClipImage().requires == {"x_edit", "change_mask"}
    assert ClipImage(region="image").requires == {"x_edit"}


def test_clip_direction_by_hand(batch):
    clip = load_clip()
    with torch.no_grad():
        image = clip.images(batch.images["x_edit"]) - clip.images(batch.source_rt_B3HW)
        text = clip.texts([s.instruction for s in batch.samples]) - clip.texts(
            [s.region_caption for s in batch.samples]
        )
    expected = torch.nn.functional.cosine_similarity(image, text)
    got = ClipDirection(min_change=1e-4).score(batch)
    assert got.raw_B.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert got.parts["change"].tolist() == pytest.approx(image.norm(dim=1).tolist(), abs=1e-5)


def test_clip_direction_tells_right_edits_from_none_and_from_wrong_ones(batch):
    """Wrong: something else disappears."""
    wrong = batch.source_rt_B3HW.clone()
    for row, sample in enumerate(batch.samples):
        bystander = next(i for i in range(len(sample.things)) if i not in sample.referents)
        wrong[row][:, torch.from_numpy(sample.things[bystander].mask_HW)] = 0.0
    reward = ClipDirection()
    right, none, bad = (
        reward.score(edited(batch, x)).raw_B for x in (batch.images["x_edit"], batch.source_rt_B3HW, wrong)
    )
    assert none.tolist() == [0] * len(none)
    assert right.mean().item() > 0.35
    assert bad.mean().item() < 0.15
    assert (right > bad).float().mean().item() > 0.8
    assert ((right >= -1) & (right <= 1)).all()


def test_clip_direction_counts_less_where_hardly_anything_changed(batch):
    slight = torch.lerp(batch.source_rt_B3HW, batch.images["x_edit"], 0.02)
    counted = ClipDirection(min_change=1e-4).score(edited(batch, slight)).raw_B
    damped = ClipDirection().score(edited(batch, slight)).raw_B
    assert (damped.abs() < 0.5 * counted.abs()).all()


def test_clip_direction_is_missing_without_a_caption(batch):
    without = replace(batch.samples[0], region_caption="", instruction="dye the zeppelin")
    samples = [without, *batch.samples[1:]]
    got = ClipDirection().score(replace(batch, samples=samples))
    assert got.valid_B.tolist() == [False] + [True] * (len(samples) - 1)
    assert got.raw_B.isfinite().all()


def test_a_sample_of_unknown_words_alone_is_missing_and_says_so(batch, caplog):
    """Words that the small network doesn't know, in instruction or caption, beside good samples."""
    samples = list(batch.samples)
    samples[0] = replace(samples[0], instruction="dye the zeppelin")
    samples[1] = replace(samples[1], region_caption="a zeppelin")
    samples[2] = replace(samples[2], region_caption="")
    samples[3] = replace(samples[3], region_caption=samples[3].instruction)
    got, known = ClipDirection().score(replace(batch, samples=samples)), ClipDirection().score(batch)
    assert got.valid_B.tolist() == [False] * 4 + [True] * (len(samples) - 4)
    assert got.parts["missing_words"].tolist() == [1, 1] + [0] * (len(samples) - 2)
    assert got.parts["missing_caption"].tolist() == [0, 0, 1, 1] + [0] * (len(samples) - 4)
    assert got.raw_B[4:].tolist() == pytest.approx(known.raw_B[4:].tolist(), abs=1e-5)
    assert not known.parts["missing_words"].any()
    (warning,) = caplog.messages
    assert warning.startswith("clip_direction: 2 of 48 scores are missing: words outside")
    assert "'zeppelin'" in warning


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match="unknown region 'inside'"):
        ClipImage(region="inside")
    with pytest.raises(ConfigError, match="min_change is 0"):
        ClipDirection(min_change=0)
    with pytest.raises(ConfigError, match="unknown CLIP|give its weights"):
        ClipImage(model="ViT-B-32")
