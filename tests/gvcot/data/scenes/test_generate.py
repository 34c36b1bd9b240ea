"""Samples are pure functions of their arguments, and their images, masks and splits are exact."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from gvcot.data import scenes
from gvcot.data.scenes.expressions import HEADS
from gvcot.data.scenes.generator import compose
from gvcot.data.scenes.render import background_rows, coverage, render, silhouette
from gvcot.data.scenes.world import BACKGROUNDS, COLORS, GRADIENT, MATERIALS, SHAPES, SIZES, Entity, Scene
from gvcot.errors import DataError

GOLDEN_TRAIN = [
    "insert a medium green circle right of the shape with five points",
    "remove the plain cross below the triangle",
    "insert a large white diamond above the smallest cross",
]
GOLDEN_BENCH = [
    "change the color of the rightmost cross to brown",
    "change the color of the striped diamond to yellow",
    "make the plain shape with four arms red",
]


def as_tuple(sample):
    arrays = (sample.source_HW3, sample.target_HW3, sample.mask_HW, sample.change_mask_HW)
    return sample.sample_id, sample.instruction, sample.region_caption, *(a.tobytes() for a in arrays)


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_every_train_sample_is_sound(seed, index):
    sample = scenes.generate(seed, index)
    difference_HW = (sample.source_HW3 != sample.target_HW3).any(-1)
    assert sample.source_HW3.shape == (64, 64, 3)
    assert sample.source_HW3.dtype == sample.target_HW3.dtype == np.uint8
    assert sample.mask_HW.dtype == sample.change_mask_HW.dtype == bool
    assert sample.task in scenes.TASKS
    assert sample.referral in scenes.REFERRALS
    assert difference_HW.any()
    # One pixel wider than what differs, so that a decoder's blur at the edge is no breach ...
    assert not (ndimage.binary_dilation(difference_HW, np.ones((3, 3))) & ~sample.change_mask_HW).any()
    # ... but no wider than faint edge pixels and unchanged highlights make it.
    around_HW = ndimage.binary_fill_holes(ndimage.binary_dilation(difference_HW, np.ones((3, 3)), 3))
    assert not (sample.change_mask_HW & ~around_HW).any()
    assert (np.logical_or.reduce([r.mask_HW for r in sample.regions]) == sample.mask_HW).all()
    (region,) = sample.regions
    x0, y0, x1, y1 = region.box
    assert region.mask_HW[y0:y1, x0:x1].sum() == region.mask_HW.sum() > 20
    assert ndimage.label(region.mask_HW)[1] == 1
    assert (sample.paint == "box") == (sample.task == "insertion")
    if sample.paint == "box":
        assert region.mask_HW[y0:y1, x0:x1].all()
        assert not (
            sample.change_mask_HW & ~ndimage.binary_dilation(region.mask_HW, np.ones((3, 3)), 2)
        ).any()


def test_samples_depend_on_nothing_but_their_arguments():
    first = [as_tuple(s) for s in scenes.samples("train", range(20), seed=3)]
    np.random.seed(1)
    random.seed(1)
    backwards = [as_tuple(s) for s in scenes.samples("train", reversed(range(20)), seed=3)]
    assert first == backwards[::-1]
    assert len(set(first)) == 20
    assert first != [as_tuple(s) for s in scenes.samples("train", range(20), seed=4)]


def test_known_samples_have_not_changed():
    # Whoever changes these raises scenes.VERSION, which makes stored encodings anew.
    assert scenes.VERSION == 2
    assert [scenes.generate(0, i).instruction for i in (0, 1, 2)] == GOLDEN_TRAIN
    assert [scenes.generate(0, i, split="bench").instruction for i in (0, 1, 2)] == GOLDEN_BENCH


def test_target_is_what_rendering_the_edited_scene_from_nothing_gives():
    for index in range(60):
        sample, edit = scenes.generate(5, index), compose(5, index).edit
        assert (sample.source_HW3 == render(edit.before, 64)).all()
        assert (sample.target_HW3 == render(edit.after, 64)).all()


def test_removal_shows_the_background():
    for index in range(20):
        sample, edit = scenes.generate(0, index, tasks=["removal"]), compose(0, index, tasks=["removal"]).edit
        rows_H13 = np.round(background_rows(edit.before.background, 64))
        empty_HW3 = np.broadcast_to(rows_H13, (64, 64, 3))
        shown = sample.target_HW3[sample.mask_HW].astype(float)
        assert np.abs(shown - empty_HW3[sample.mask_HW]).max() <= 1


@pytest.mark.parametrize("size", [64, 80, 128])
def test_entities_stay_in_their_cells_and_never_overlap(size):
    for index in range(30):
        edit = compose(9, index).edit
        for scene in (edit.before, edit.after):
            covered_HW = np.zeros((size, size))
            for entity in scene.entities:
                (x0, y0, x1, y1), alpha = coverage(entity, size)
                covered_HW[y0:y1, x0:x1] += alpha
                column, row = entity.cell
                cell = size // 4
                outside_HW = np.zeros((size, size))
                outside_HW[y0:y1, x0:x1] = alpha
                outside_HW[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = 0
                assert outside_HW.max() == 0
            assert covered_HW.max() <= 1
            assert len({e.cell for e in scene.entities}) == len(scene.entities)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_silhouettes_have_no_thin_parts(shape, size):
    mask_HW = silhouette(Entity(shape, "red", "plain", size, 24.3, 40.6), 64)
    opened_HW = ndimage.binary_opening(mask_HW, np.ones((2, 2)))
    assert mask_HW.sum() >= 28
    assert opened_HW.sum() >= 0.85 * mask_HW.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_silhouette_area_grows_with_the_square_of_the_radius(shape):
    small, large = (
        coverage(Entity(shape, "red", "plain", size, 24, 24), 512)[1].sum() for size in ("small", "large")
    )
    assert large / small == pytest.approx((7.0 / 4.5) ** 2, rel=0.02)


def test_circle_and_square_cover_their_exact_areas():
    circle = coverage(Entity("circle", "red", "plain", "large", 24, 24), 512)[1].sum() / 64
    square = coverage(Entity("square", "red", "plain", "large", 24, 24), 512)[1].sum() / 64
    assert circle == pytest.approx(np.pi * 49, rel=0.005)
    assert square == pytest.approx((2 * 0.86 * 7) ** 2, rel=0.005)


def test_colours_keep_their_distance():
    colors = {name: np.array(rgb, float) for name, rgb in COLORS.items()}
    for name, rgb in colors.items():
        assert np.linalg.norm(rgb - [255, 0, 255]) > 200, name
        for other, rgb2 in colors.items():
            assert name == other or np.linalg.norm(rgb - rgb2) > 80, (name, other)
        for background, rgb2 in BACKGROUNDS.items():
            for level in (-GRADIENT, GRADIENT):
                assert np.linalg.norm(rgb - (np.array(rgb2) + level)) > 75, (name, background)


def test_no_pixel_comes_near_the_overlay():
    pixels = np.concatenate([s.source_HW3.reshape(-1, 3) for s in scenes.samples("train", range(60))]).astype(
        float
    )
    assert np.linalg.norm(pixels - [255, 0, 255], axis=1).min() > 150


@pytest.mark.parametrize("material", MATERIALS[1:])
@pytest.mark.parametrize("color", COLORS)
def test_materials_show_on_every_colour(color, material):
    entity = Entity("circle", color, "plain", "small", 24, 24)
    textured = Entity("circle", color, material, "small", 24, 24)
    plain_HW3, textured_HW3 = (render(Scene("gray", (e,)), 64).astype(float) for e in (entity, textured))
    mask_HW = silhouette(entity, 64)
    difference = np.abs(plain_HW3 - textured_HW3).max(-1)[mask_HW]
    assert (difference > 25).mean() > 0.15


def test_other_image_sizes_show_the_same_scene():
    small, large = scenes.generate(0, 4), scenes.generate(0, 4, size=128)
    assert large.source_HW3.shape == (128, 128, 3)
    assert large.instruction == small.instruction
    halved = large.source_HW3.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(halved - small.source_HW3).mean() < 2
    assert large.mask_HW[::2, ::2].sum() == pytest.approx(small.mask_HW.sum(), rel=0.15)


def test_bench_shows_only_compositions_that_training_never_shows():
    def compositions(split, count):
        found = Counter()
        for index in range(count):
            reference = compose(0, index, split=split).reference
            found[reference.entity.color, reference.entity.shape, reference.expression.head] += 1
        return found

    train, val, bench = compositions("train", 1500), compositions("val", 200), compositions("bench", 590)
    assert not train.keys() & bench.keys()
    assert not val.keys() & bench.keys()
    assert {head for *_, head in bench} == set(HEADS)
    # Yet every colour, shape and pair of them is known from training.
    assert {key[:2] for key in bench} <= {key[:2] for key in train}


def test_splits_and_groups_have_their_sizes():
    bench = scenes.samples("bench", range(590))
    assert sorted(Counter(s.referral for s in bench).values()) == [196, 197, 197]
    tasks = Counter(s.task for s in bench)
    assert max(tasks.values()) - min(tasks.values()) <= 3
    train = Counter(s.referral for s in scenes.samples("train", range(900)))
    assert all(250 < n < 350 for n in train.values())
    assert len({s.sample_id for s in bench}) == 590


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "bensh"}, "did you mean 'bench'"),
        ({"tasks": ["colour"]}, "did you mean 'color'"),
        ({"tasks": []}, "no task given"),
        ({"split": "val", "index": 512}, "0 <= index < 512"),
        ({"split": "bench", "index": 590}, "0 <= index < 590"),
        ({"index": -1}, "any index from 0"),
        ({"seed": -1}, "0 or more"),
        ({"size": 60}, "multiple of 16"),
        ({"size": 48}, "at least 64"),
    ],
)
def test_bad_arguments_say_what_would_be_right(arguments, message):
    with pytest.raises(DataError, match=message):
        scenes.generate(**{"seed": 0, "index": 0, **arguments})


def test_chosen_tasks_only():
    assert {s.task for s in scenes.samples("val", range(40), tasks=["size", "color"])} == {"size", "color"}
