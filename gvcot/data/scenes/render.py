"""Rendering scenes: analytic signed distances, one small patch per entity, numpy only.

h, w are the pixels of a patch; H, W those of the image.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from gvcot.data.scenes import draw
from gvcot.data.scenes.world import BACKGROUNDS, CELL, GRADIENT, Backdrop, Entity, Scene

Array = np.ndarray
Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels, x1 and y1 exclusive."""


VISIBLE = 20
"""Levels by which a pixel must change for anybody to see it."""


def _patch(entity: Entity, scale: float, size: int) -> tuple[Box, Array, Array, float]:
    """The entity's patch, its pixel coordinates relative to the centre, and its radius in pixels."""
    x, y, r = entity.x * scale, entity.y * scale, entity.radius * scale
    reach = max(r, draw.STAMP[0] * scale) if entity.stamped else r
    x0, y0 = max(0, int(x - reach - 1)), max(0, int(y - reach - 1))
    x1, y1 = min(size, int(x + reach + 2)), min(size, int(y + reach + 2))
    u = np.arange(x0, x1, dtype=np.float32)[None, :] + np.float32(0.5 - x)
    v = np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5 - y)
    return (x0, y0, x1, y1), u, v, r


def coverage(entity: Entity, side: float, size: int) -> tuple[Box, Array]:
    """How much of each pixel the entity and what lies on it cover.

    Args:
        entity: the thing.
        side: world units per side of the picture.
        size: pixels per side.

    Returns:
        Its patch, and float32 (h, w) in [0, 1] there; it covers nothing outside the patch.
    """
    scale = size / side
    box, u, v, r = _patch(entity, scale, size)
    _, alpha_hw = draw.paint_patch(entity, u, v, r, scale)
    if entity.stamped:
        alpha_hw = np.maximum(alpha_hw, draw.stamp(u, v, scale)[1])
    return box, alpha_hw


def wall_mask(backdrop: Backdrop, wall: int, side: float, size: int) -> Array:
    """bool (H, W): where one of the walls is, things before it included."""
    mask_HW = np.ones((size, size), bool)
    if len(backdrop.walls) == 1:
        return mask_HW
    edge = round(backdrop.cut * CELL * size / side)
    first_HW = np.zeros((size, size), bool)
    if backdrop.seam == "upright":
        first_HW[:, :edge] = True
    else:
        first_HW[:edge] = True
    return first_HW if wall == 0 else ~first_HW


@lru_cache(maxsize=512)
def _backdrop(backdrop: Backdrop, side: float, size: int) -> Array:
    ramp_H11 = np.linspace(GRADIENT, -GRADIENT, size, dtype=np.float32)[:, None, None]
    image_HW3 = np.empty((size, size, 3), np.uint8)
    for wall, name in enumerate(backdrop.walls):
        mask_HW = wall_mask(backdrop, wall, side, size)
        rows_HW3 = np.broadcast_to(np.asarray(BACKGROUNDS[name], np.float32) + ramp_H11, (size, size, 3))
        image_HW3[mask_HW] = _round(rows_HW3[mask_HW])
    image_HW3.setflags(write=False)
    return image_HW3


def _round(values: Array) -> Array:
    return (np.clip(values, 0.0, 255.0) + 0.5).astype(np.uint8)


def _draw(image_HW3: Array, entity: Entity, side: float) -> None:
    size = image_HW3.shape[0]
    scale = size / side
    (x0, y0, x1, y1), u, v, r = _patch(entity, scale, size)
    color_hw3, alpha_hw = draw.paint_patch(entity, u, v, r, scale)
    patch = color_hw3 + (1.0 - alpha_hw)[..., None] * image_HW3[y0:y1, x0:x1]
    if entity.stamped:
        color_hw3, weight_hw, _ = draw.stamp(u, v, scale)
        patch = patch + weight_hw[..., None] * (color_hw3 - patch)
    image_HW3[y0:y1, x0:x1] = _round(patch)


def render(scene: Scene, size: int) -> Array:
    """uint8 (size, size, 3)."""
    image_HW3 = _backdrop(scene.backdrop, scene.side, size).copy()
    for entity in scene.entities:
        _draw(image_HW3, entity, scene.side)
    return image_HW3


def render_change(image_HW3: Array, before: Scene, after: Scene) -> Array:
    """The image of `after`, given that of `before`; draws only what differs.

    Equal to `render(after)` to the bit, because entities never overlap.
    """
    size = image_HW3.shape[0]
    if before.backdrop != after.backdrop:
        return render(after, size)
    changed_HW3 = image_HW3.copy()
    empty_HW3 = _backdrop(before.backdrop, before.side, size)
    kept = set(after.entities)
    for entity in before.entities:
        if entity not in kept:
            (x0, y0, x1, y1), alpha_hw = coverage(entity, before.side, size)
            patch = changed_HW3[y0:y1, x0:x1]
            changed_HW3[y0:y1, x0:x1] = np.where(alpha_hw[..., None] > 0, empty_HW3[y0:y1, x0:x1], patch)
    old = set(before.entities)
    for entity in after.entities:
        if entity not in old:
            _draw(changed_HW3, entity, after.side)
    return changed_HW3


def silhouette(entity: Entity, side: float, size: int) -> Array:
    """bool (H, W): the pixels of which the whole entity, holes filled, covers at least half."""
    (x0, y0, x1, y1), u, v, r = _patch(entity, size / side, size)
    mask_HW = np.zeros((size, size), bool)
    mask_HW[y0:y1, x0:x1] = draw.outline(entity, u, v, r) <= 0.0
    return mask_HW


def stamp_mask(entity: Entity, side: float, size: int) -> Array:
    """bool (H, W): where the watermark on an entity lies."""
    (x0, y0, x1, y1), u, v, _ = _patch(entity, size / side, size)
    mask_HW = np.zeros((size, size), bool)
    mask_HW[y0:y1, x0:x1] = draw.stamp(u, v, size / side)[2]
    return mask_HW


def change_mask(before: Scene, after: Scene, size: int) -> Array:
    """bool (H, W): every pixel that an appearing, changing or vanishing thing touches, grown by one pixel."""
    mask_HW = np.zeros((size, size), bool)
    for wall, (old, new) in enumerate(zip(before.backdrop.walls, after.backdrop.walls, strict=True)):
        if old != new:
            mask_HW |= wall_mask(before.backdrop, wall, before.side, size)
    for entity in set(before.entities) ^ set(after.entities):
        (x0, y0, x1, y1), alpha_hw = coverage(entity, before.side, size)
        mask_HW[y0:y1, x0:x1] |= alpha_hw > 0
    return dilate(mask_HW)


def dilate(mask_HW: Array) -> Array:
    """The mask grown by one pixel in all eight directions."""
    wide = mask_HW.copy()
    wide[:, 1:] |= mask_HW[:, :-1]
    wide[:, :-1] |= mask_HW[:, 1:]
    grown = wide.copy()
    grown[1:] |= wide[:-1]
    grown[:-1] |= wide[1:]
    return grown


def bounds(mask_HW: Array) -> Box:
    """The tight box of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def visible_change(before: Scene, after: Scene, size: int) -> int:
    """Pixels that differ by more than `VISIBLE` levels in some channel."""
    kept = set(before.entities) & set(after.entities)
    images = [
        render(replace(scene, entities=tuple(e for e in scene.entities if e not in kept)), size).astype(
            np.int16
        )
        for scene in (before, after)
    ]
    return int((np.abs(images[0] - images[1]).max(-1) > VISIBLE).sum())


FINE = 8
"""Pixels per world unit at which areas are counted."""


def area(entity: Entity) -> float:
    """World units squared that the whole thing covers, wherever it stands."""
    alone = Entity(
        entity.shape, "red", "plain", entity.size, CELL, CELL, entity.state, entity.figure
    )  # all that its outline depends on
    return _area(alone)


@lru_cache(maxsize=4096)
def _area(entity: Entity) -> float:
    side = 2 * CELL
    return float(silhouette(entity, side, round(side) * FINE).sum()) / FINE**2
