"""Everything that instructions speak of can be seen: shapes, colours, materials, states, poses, damage."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from gvcot.data import scenes
from gvcot.data.scenes.layout import sizes_of
from gvcot.data.scenes.render import coverage, render, silhouette
from gvcot.data.scenes.world import (
    ARMS,
    BACKGROUNDS,
    COLORS,
    DEFECTS,
    GRADIENT,
    MATERIALS,
    PERSON,
    PLAIN_SHAPES,
    SHAPES,
    SIZES,
    STATES,
    STRUCTURES,
    STYLES,
    Backdrop,
    Entity,
    Figure,
    Scene,
)

SQUARE = np.ones((3, 3))

VISIBLE = 20
"""Levels of 255 by which a channel of a pixel has to change to be seen."""
ENOUGH = 5
"""Pixels that have to change visibly, in pictures of 64 x 64."""


@cache
def picture(entity: Entity) -> NDArray[np.int16]:
    return render(Scene(3, Backdrop(("gray",)), (entity,)), 48).astype(np.int16)


def num_changed(one: Entity, other: Entity) -> int:
    return int((np.abs(picture(one) - picture(other)).max(-1) > VISIBLE).sum())


def smallest(shape: str) -> list[Entity]:
    """A shape at the smallest size in which it occurs, in all its colours, materials and states."""
    return [
        Entity(shape, color, material, sizes_of(shape)[0], 24.3, 24.6, state)
        for color in COLORS
        for material in MATERIALS
        for state in STATES[shape]
    ]


def unseen(pairs: list[tuple[Entity, Entity, str]]) -> dict[str, int]:
    """Changes that too few pixels show."""
    found = {f"{old.state} {old.describe()} -> {what}": num_changed(old, new) for old, new, what in pairs}
    return {what: n for what, n in sorted(found.items(), key=lambda item: item[1]) if n < ENOUGH}


def nearly_all_show(pairs: list[tuple[Entity, Entity, str]]) -> bool:
    """Five of six; instead of the others the generator draws another scene."""
    return len(unseen(pairs)) <= len(pairs) / 6


@pytest.mark.parametrize("shape", SHAPES)
def test_materials_show(shape: str) -> None:
    assert nearly_all_show(
        [(e, replace(e, material=m), m) for e in smallest(shape) for m in MATERIALS if m != e.material]
    )


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(STATES[s]) > 1])
def test_states_show(shape: str) -> None:
    assert nearly_all_show(
        [(e, replace(e, state=s), s) for e in smallest(shape) for s in STATES[shape] if s != e.state]
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_styles_show(shape: str) -> None:
    assert nearly_all_show([(e, replace(e, style=s), s) for e in smallest(shape) for s in STYLES[1:]])


@pytest.mark.parametrize("shape", SHAPES)
def test_damage_and_watermarks_show(shape: str) -> None:
    defects = [(e, replace(e, defect=d), d) for e in smallest(shape) for d in DEFECTS]
    assert nearly_all_show(defects + [(e, replace(e, stamped=True), "watermark") for e in smallest(shape)])


@pytest.mark.parametrize("shape", PLAIN_SHAPES)
def test_structures_show(shape: str) -> None:
    assert nearly_all_show([(e, replace(e, structure=s), s) for e in smallest(shape) for s in STRUCTURES[1:]])


def test_poses_and_clothes_show() -> None:
    changes = []
    for person in smallest(PERSON):
        for arms in ARMS:
            old = replace(person, figure=Figure(arms=arms))
            changes += [(old, replace(person, figure=Figure(arms=a)), f"arms {a}") for a in ARMS if a != arms]
            if person.material == "plain":
                others = [color for color in COLORS if color != person.color]
                changes += [
                    (old, replace(person, figure=Figure(arms, None, c)), f"{c} trousers") for c in others
                ]
                changes += [(old, replace(person, figure=Figure(arms, c)), f"{c} hat") for c in others]
    assert not unseen(changes)


@pytest.mark.parametrize("shape", SHAPES)
def test_colours_and_sizes_show(shape: str) -> None:
    things = [e for e in smallest(shape) if e.material in ("plain", "shiny")]
    changes = [(e, replace(e, color=color), color) for e in things for color in COLORS if color != e.color]
    assert not unseen(changes + [(e, replace(e, size=sizes_of(shape)[1]), "larger") for e in things])


@pytest.mark.parametrize("shape", SHAPES)
def test_shades_of_hard_edits_show(shape: str) -> None:
    changes = []
    for entity in smallest(shape):
        brightness = sum(COLORS[entity.color]) / 3
        changes += [(entity, replace(entity, shade=0.35), "lighter")] if brightness < 165 else []
        changes += [(entity, replace(entity, shade=-0.35), "darker")] if brightness >= 90 else []
    assert not unseen(changes)


@pytest.mark.parametrize("split", ["train", "bench"])
@pytest.mark.parametrize(
    "task", ["material", "state", "style", "structure", "repair", "human_attribute", "pose"]
)
def test_every_edit_of_the_looks_of_a_thing_can_be_seen(task: str, split: scenes.Split) -> None:
    world, hidden = scenes.WorldConfig(tasks=(task,)), {}
    for index, sample in enumerate(
        scenes.samples(split, range(120 if split == "train" else 30), world=world)
    ):
        assert sample.target_HW3 is not None
        change_HW = np.abs(sample.source_HW3.astype(int) - sample.target_HW3).max(-1) > VISIBLE
        if change_HW.sum() < ENOUGH:
            hidden[index] = f"{sample.instruction} ({sample.region_caption}): {change_HW.sum()} pixels"
    assert not hidden


def num_parts(mask_HW: NDArray[np.bool_]) -> int:
    """Connected parts; pixels that touch at a corner are connected."""
    parts_HW = np.zeros(mask_HW.shape, np.int32)
    ndimage.label(mask_HW, SQUARE, parts_HW)
    return int(parts_HW.max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_silhouettes_have_no_specks(shape: str, size: str) -> None:
    if size in (*sizes_of(shape), "huge"):
        mask_HW = silhouette(Entity(shape, "red", "plain", size, 32.3, 32.6), 64.0, 64)
        opened_HW = ndimage.binary_opening(mask_HW, np.ones((2, 2)))
        assert mask_HW.sum() >= 28
        assert (
            opened_HW.sum() >= (0.65 if shape == "lamp" else 0.8) * mask_HW.sum()
        )  # a lamp has a thin stand
        assert num_parts(mask_HW) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_silhouette_area_grows_with_the_square_of_the_radius(shape: str) -> None:
    small, large = (
        silhouette(Entity(shape, "red", "plain", size, 24, 24), 48.0, 384).sum()
        for size in ("small", "large")
    )
    assert large / small == pytest.approx((7.0 / 4.5) ** 2, rel=0.03)


def test_circle_and_square_cover_their_exact_areas() -> None:
    circle = coverage(Entity("circle", "red", "plain", "large", 24, 24), 64.0, 512)[1].sum() / 64
    square = coverage(Entity("square", "red", "plain", "large", 24, 24), 64.0, 512)[1].sum() / 64
    assert circle == pytest.approx(np.pi * 49, rel=0.005)
    assert square == pytest.approx((2 * 0.86 * 7) ** 2, rel=0.005)


@pytest.mark.parametrize("shape", SHAPES)
def test_silhouettes_are_where_things_differ_from_the_empty_wall(shape: str) -> None:
    entity = Entity(shape, "red", "plain", "large", 24.3, 24.6)
    empty_HW3 = render(Scene(3, Backdrop(("gray",)), ()), 48).astype(int)
    shown_HW = (np.abs(picture(entity) - empty_HW3).max(-1)) > 0
    mask_HW = silhouette(entity, 48.0, 48)
    assert not (mask_HW & ~shown_HW).any()
    assert not (shown_HW & ~np.asarray(ndimage.binary_dilation(mask_HW, SQUARE), bool)).any()


def test_colours_keep_their_distance() -> None:
    colors = {name: np.array(rgb, float) for name, rgb in COLORS.items()}
    for name, rgb in colors.items():
        assert np.linalg.norm(rgb - [255, 0, 255]) > 200, name
        for other, rgb2 in colors.items():
            assert name == other or np.linalg.norm(rgb - rgb2) > 80, (name, other)
        for background, rgb2 in BACKGROUNDS.items():
            for level in (-GRADIENT, GRADIENT):
                assert np.linalg.norm(rgb - (np.array(rgb2) + level)) > 75, (name, background)


def test_walls_can_be_told_apart() -> None:
    for name, rgb in BACKGROUNDS.items():
        for other, rgb2 in BACKGROUNDS.items():
            assert name == other or np.abs(np.subtract(rgb, rgb2)).max() >= 15, (name, other)


@pytest.mark.parametrize("level", ["standard", "hard"])
def test_no_pixel_comes_near_the_overlay(level: str) -> None:
    samples = scenes.samples("train", range(80), world=scenes.WorldConfig(level=level))
    pixels = np.concatenate(
        [i.reshape(-1, 3) for s in samples for i in (s.source_HW3, s.target_HW3) if i is not None]
    )
    assert np.linalg.norm(pixels.astype(float) - [255, 0, 255], axis=1).min() > 150
