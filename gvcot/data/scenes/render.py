"""Rendering: analytic signed distances, one small patch per entity, numpy only.

h, w are the pixels of a patch; H, W those of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np

from gvcot.data.scenes.world import BACKGROUNDS, COLORS, GRADIENT, WORLD, Entity, Scene

Array = np.ndarray
Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels, x1 and y1 exclusive."""


def _circle(u: Array, v: Array, r: float) -> Array:
    return np.sqrt(u * u + v * v) - r


def _square(u: Array, v: Array, r: float) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - 0.86 * r


def _triangle(u: Array, v: Array, r: float) -> Array:
    # Apex (0, -0.95 r), base corners (+-r, 0.8 r); the slanted edge's normal is (1.75, -1) / 2.0156.
    slanted = (1.75 * np.abs(u) - (v + 0.95 * r)) / 2.0156
    return np.maximum(slanted, v - 0.8 * r)


def _diamond(u: Array, v: Array, r: float) -> Array:
    return (np.abs(u) + 0.76 * np.abs(v) - 0.76 * r) / 1.2560


def _cross(u: Array, v: Array, r: float) -> Array:
    a, b = np.abs(u), np.abs(v)
    thick, length = 0.36 * r, 0.96 * r
    return np.minimum(np.maximum(a - length, b - thick), np.maximum(b - length, a - thick))


def _star(u: Array, v: Array, r: float) -> Array:
    # All ten edges are folded onto one, from the tip (r, 0) to the inner corner at 36 degrees.
    fifth = 2 * np.pi / 5
    angle = np.abs(np.mod(np.arctan2(u, -v) + fifth / 2, fifth) - fifth / 2)
    rho = np.sqrt(u * u + v * v)
    p, q = rho * np.cos(angle), rho * np.sin(angle)
    inner = 0.56 * r
    ex, ey = inner * np.cos(fifth / 2) - r, inner * np.sin(fifth / 2)
    return ((p - r) * ey - q * ex) / np.hypot(ex, ey)


SIGNED_DISTANCE: MappingProxyType[str, Callable[[Array, Array, float], Array]] = MappingProxyType(
    {
        "circle": _circle,
        "square": _square,
        "triangle": _triangle,
        "diamond": _diamond,
        "cross": _cross,
        "star": _star,
    }
)
"""(u, v, radius) -> distance to the outline, negative inside; exact near edges, a bound near corners."""


def _plain(base_3: Array, u: Array, v: Array, r: float) -> Array:
    return base_3


def _striped(base_3: Array, u: Array, v: Array, r: float) -> Array:
    # Two bands across the body; a dark body gets lighter ones, because darker ones would not show.
    band_3 = base_3 * 0.55 if base_3.max() > 60 else base_3 + 75
    distance = np.abs(np.abs(v) - 0.36 * r) - 0.19 * r
    weight = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    return base_3 + weight * (band_3 - base_3)


def _shiny(base_3: Array, u: Array, v: Array, r: float) -> Array:
    shade = 1.0 - 0.3 * np.clip((u + v) / (2 * r) + 0.2, 0.0, 1.0)
    spot = 0.85 * np.exp(-((u + 0.3 * r) ** 2 + (v + 0.25 * r) ** 2) / (0.16 * r * r))[..., None]
    body = base_3 * shade[..., None]
    return body + spot * (255.0 - body)


TEXTURE: MappingProxyType[str, Callable[[Array, Array, Array, float], Array]] = MappingProxyType(
    {"plain": _plain, "striped": _striped, "shiny": _shiny}
)
"""(base colour, u, v, radius) -> colours, (3,) or (h, w, 3)."""


def _patch(entity: Entity, size: int) -> tuple[Box, Array, Array, float]:
    """The entity's patch, its pixel coordinates relative to the centre, and its radius in pixels."""
    scale = size / WORLD
    x, y, r = entity.x * scale, entity.y * scale, entity.radius * scale
    x0, y0 = max(0, int(x - r - 1)), max(0, int(y - r - 1))
    x1, y1 = min(size, int(x + r + 2)), min(size, int(y + r + 2))
    u = np.arange(x0, x1, dtype=np.float32)[None, :] + np.float32(0.5 - x)
    v = np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5 - y)
    return (x0, y0, x1, y1), u, v, r


def _alpha(shape: str, u: Array, v: Array, r: float) -> Array:
    # Cut at the square of half-side r: the distance to a pointed outline is too small beyond its tips, which
    # would leak a little coverage into the neighbouring cell.
    distance = np.maximum(SIGNED_DISTANCE[shape](u, v, r), np.maximum(np.abs(u), np.abs(v)) - r)
    return np.clip(0.5 - distance, 0.0, 1.0)


def coverage(entity: Entity, size: int) -> tuple[Box, Array]:
    """How much of each pixel the entity covers.

    Returns:
        Its patch, and float32 (h, w) in [0, 1] there; it covers nothing outside the patch.
    """
    box, u, v, r = _patch(entity, size)
    return box, _alpha(entity.shape, u, v, r)


def background_rows(name: str, size: int) -> Array:
    """float32 (H, 1, 3): the colour of each image row."""
    ramp_H = np.linspace(GRADIENT, -GRADIENT, size, dtype=np.float32)
    return (np.asarray(BACKGROUNDS[name], np.float32) + ramp_H[:, None])[:, None, :]


def _round(values: Array) -> Array:
    return (np.clip(values, 0.0, 255.0) + 0.5).astype(np.uint8)


def _draw(image_HW3: Array, entity: Entity) -> None:
    (x0, y0, x1, y1), u, v, r = _patch(entity, image_HW3.shape[0])
    alpha = _alpha(entity.shape, u, v, r)[..., None]
    color = TEXTURE[entity.material](np.asarray(COLORS[entity.color], np.float32), u, v, r)
    patch = image_HW3[y0:y1, x0:x1].astype(np.float32)
    image_HW3[y0:y1, x0:x1] = _round(patch + alpha * (color - patch))


def render(scene: Scene, size: int) -> Array:
    """uint8 (size, size, 3)."""
    image_HW3 = np.empty((size, size, 3), np.uint8)
    image_HW3[:] = _round(background_rows(scene.background, size))
    for entity in scene.entities:
        _draw(image_HW3, entity)
    return image_HW3


def render_change(image_HW3: Array, before: Scene, after: Scene) -> Array:
    """The image of `after`, given that of `before`; draws only what differs.

    Equal to `render(after)` to the bit, because entities never overlap.
    """
    size = image_HW3.shape[0]
    if before.background != after.background:
        return render(after, size)
    changed_HW3 = image_HW3.copy()
    rows_H13 = _round(background_rows(before.background, size))
    for entity in before.entities:
        if entity not in after.entities:
            (x0, y0, x1, y1), alpha = coverage(entity, size)
            patch = changed_HW3[y0:y1, x0:x1]
            changed_HW3[y0:y1, x0:x1] = np.where(alpha[..., None] > 0, rows_H13[y0:y1], patch)
    for entity in after.entities:
        if entity not in before.entities:
            _draw(changed_HW3, entity)
    return changed_HW3


def silhouette(entity: Entity, size: int) -> Array:
    """bool (H, W): the pixels of which the entity covers at least half."""
    (x0, y0, x1, y1), alpha = coverage(entity, size)
    mask_HW = np.zeros((size, size), bool)
    mask_HW[y0:y1, x0:x1] = alpha >= 0.5
    return mask_HW


def change_mask(before: Scene, after: Scene, size: int) -> Array:
    """bool (H, W): every pixel that an appearing or vanishing entity touches, grown by one pixel."""
    mask_HW = np.zeros((size, size), bool)
    if before.background != after.background:
        mask_HW[:] = True
        return mask_HW
    for entity in set(before.entities) ^ set(after.entities):
        (x0, y0, x1, y1), alpha = coverage(entity, size)
        mask_HW[y0:y1, x0:x1] |= alpha > 0
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
