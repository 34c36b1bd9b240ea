"""How one thing looks: signed distances of its parts, textures, states, styles and damage. numpy only.

h, w are the pixels of a patch around a thing; u, v pixel coordinates from its centre (v points down); r its
radius in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from gvcot.data.scenes.world import COLORS, DOOR, LAMP, PERSON, PLAIN_SHAPES, Entity, Figure

Array = np.ndarray

DARK = (62, 62, 70)
SKIN = (232, 188, 150)
LIGHT = (255, 246, 176)
FRAME = (84, 60, 44)
INSIDE = (26, 26, 30)
BRASS = (238, 214, 110)
PAPER = (238, 238, 232)
INK = (34, 34, 38)
STAIN = (72, 84, 40)

RING = 0.3
"""Thickness of a hollow thing's ring, per radius."""

GAP = 0.17
"""Half the gap of a thing that is split, per radius."""

BLOCK = 3
"""Side of a mosaic's blocks in world units."""

STAMP = (6.8, 2.7)
"""Half sides of a watermark in world units."""


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
    dict(zip(PLAIN_SHAPES, (_circle, _square, _triangle, _diamond, _cross, _star), strict=True))
)
"""(u, v, radius) -> distance to the outline, negative inside; exact near edges, a bound near corners."""


def _box(u: Array, v: Array, center: tuple[float, float], half: tuple[float, float]) -> Array:
    return np.maximum(np.abs(u - center[0]) - half[0], np.abs(v - center[1]) - half[1])


def _limb(u: Array, v: Array, start: tuple[float, float], end: tuple[float, float], thick: float) -> Array:
    """Distance to a line of the given half thickness with round ends, mirrored in u."""
    (x0, y0), (x1, y1) = start, end
    px, py = np.abs(u) - x0, v - y0
    dx, dy = x1 - x0, y1 - y0
    along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    return np.hypot(px - along * dx, py - along * dy) - thick


_ARM_ENDS = MappingProxyType({"down": (0.5, 0.24), "out": (0.9, -0.26), "up": (0.58, -0.84)})
_LEGS = MappingProxyType(
    {
        "standing": (((0.15, 0.2), (0.17, 0.86)),),
        "walking": (((0.12, 0.2), (0.62, 0.84)),),
        "jumping": (((0.12, 0.18), (0.66, 0.3)), ((0.66, 0.3), (0.44, 0.7))),
    }
)
"""Of the right half, in radii; the left one is its mirror image."""


@dataclass(slots=True)
class Part:
    """One part of a thing."""

    distance_hw: Array
    color: Array
    """(3,) or (h, w, 3)."""


def _person(entity: Entity, body: Array, u: Array, v: Array, r: float) -> list[Part]:
    figure = entity.figure or Figure()
    a, b = u / r, v / r
    trousers = COLORS[figure.trousers] if figure.trousers else DARK
    parts = [Part(_limb(a, b, *bone, 0.14) * r, _rgb(trousers)) for bone in _LEGS[entity.state]]
    parts.append(Part(_limb(a, b, (0.24, -0.26), _ARM_ENDS[figure.arms], 0.125) * r, body))
    parts.append(Part(_box(a, b, (0.0, -0.04), (0.3, 0.34)) * r, body))
    parts.append(Part((np.hypot(a, b + 0.62) - 0.28) * r, _rgb(SKIN)))
    if figure.hat:
        hat = np.minimum(_box(a, b, (0.0, -0.78), (0.46, 0.07)), _box(a, b, (0.0, -0.89), (0.26, 0.11)))
        parts.append(Part(hat * r, _rgb(COLORS[figure.hat])))
    return parts


def _lamp(entity: Entity, body: Array, u: Array, v: Array, r: float) -> list[Part]:
    a, b = u / r, v / r
    stand = np.minimum(_box(a, b, (0.0, 0.4), (0.1, 0.5)), _box(a, b, (0.0, 0.86), (0.5, 0.12)))
    shade = np.maximum(np.abs(b + 0.5) - 0.44, (np.abs(a) - 0.62 - 0.45 * (b + 0.5)) / 1.1)
    parts = [Part(stand * r, _rgb(DARK)), Part(shade * r, body)]
    if entity.state == "lit":
        cone = np.maximum(np.abs(b - 0.34) - 0.42, (np.abs(a) - 0.78 - 0.4 * (b - 0.34)) / 1.08)
        parts.insert(0, Part(cone * r, _rgb(LIGHT)))
    return parts


def _door(entity: Entity, body: Array, u: Array, v: Array, r: float) -> list[Part]:
    a, b = u / r, v / r
    parts = [Part(_box(a, b, (0.0, 0.0), (0.7, 0.95)) * r, _rgb(FRAME))]
    if entity.state == "open":
        parts.append(Part(_box(a, b, (0.0, 0.06), (0.52, 0.83)) * r, _rgb(INSIDE)))
        parts.append(Part(_box(a, b, (-0.37, 0.06), (0.17, 0.83)) * r, body))
    else:
        parts.append(Part(_box(a, b, (0.0, 0.06), (0.52, 0.83)) * r, body))
        parts.append(Part((np.hypot(a - 0.3, b - 0.1) - 0.13) * r, _rgb(BRASS)))
    return parts


_COMPOSED = MappingProxyType({PERSON: _person, LAMP: _lamp, DOOR: _door})


def _rgb(color: tuple[int, int, int]) -> Array:
    return np.asarray(color, np.float32)


def _plain(base_3: Array, u: Array, v: Array, r: float) -> Array:
    return base_3


def _second(base_3: Array) -> Array:
    # A dark body gets a lighter pattern, because a darker one would not show.
    return base_3 * 0.55 if base_3.max() > 60 else base_3 + 75


def _striped(base_3: Array, u: Array, v: Array, r: float) -> Array:
    distance = np.abs(np.abs(v) - 0.36 * r) - 0.19 * r
    weight = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    return base_3 + weight * (_second(base_3) - base_3)


def _dotted(base_3: Array, u: Array, v: Array, r: float) -> Array:
    dots = np.hypot(np.abs(u) - 0.38 * r, np.abs(v) - 0.38 * r) - 0.24 * r
    weight = np.clip(0.5 - dots, 0.0, 1.0)[..., None]
    return base_3 + weight * (_second(base_3) - base_3)


def _shiny(base_3: Array, u: Array, v: Array, r: float) -> Array:
    shade = 1.0 - 0.3 * np.clip((u + v) / (2 * r) + 0.2, 0.0, 1.0)
    spot = 0.85 * np.exp(-((u + 0.3 * r) ** 2 + (v + 0.25 * r) ** 2) / (0.16 * r * r))[..., None]
    body = base_3 * shade[..., None]
    return body + spot * (255.0 - body)


TEXTURE: MappingProxyType[str, Callable[[Array, Array, Array, float], Array]] = MappingProxyType(
    {"plain": _plain, "striped": _striped, "dotted": _dotted, "shiny": _shiny}
)
"""(base colour, u, v, radius) -> colours, (3,) or (h, w, 3)."""


def _shaded(color: tuple[int, int, int], shade: float) -> Array:
    base_3 = _rgb(color)
    return base_3 + abs(shade) * ((255.0 if shade > 0 else 0.0) - base_3)


def _kept(structure: str, u: Array, v: Array, r: float) -> Array | None:
    """Distance to the region of a thing that its structure leaves."""
    if structure == "whole":
        return None
    if structure == "split":
        return GAP * r - np.abs(u) + 0 * v
    lost = {"no top": -v, "no bottom": v, "no left": -u, "no right": u}[structure]
    return lost + 0 * (u + v)


def outline(entity: Entity, u: Array, v: Array, r: float) -> Array:
    """Distance to the outline of the whole thing, without hole or cut, in pixels."""
    if entity.shape in SIGNED_DISTANCE:
        return SIGNED_DISTANCE[entity.shape](u, v, r)
    parts = _COMPOSED[entity.shape](entity, _rgb(DARK), u, v, r)
    return np.minimum.reduce([part.distance_hw for part in parts])


def paint_patch(entity: Entity, u: Array, v: Array, r: float, scale: float) -> tuple[Array, Array]:
    """What a thing looks like on nothing.

    Args:
        entity: the thing.
        u: (1, w) pixels right of its centre.
        v: (h, 1) pixels below its centre.
        r: radius in pixels.
        scale: pixels per world unit.

    Returns:
        float32 colours (h, w, 3), times coverage, and coverage (h, w) in [0, 1].
    """
    body = TEXTURE[entity.material](_shaded(COLORS[entity.color], entity.shade), u, v, r)
    if entity.shape in SIGNED_DISTANCE:
        distance = SIGNED_DISTANCE[entity.shape](u, v, r)
        hollow = entity.state == "hollow"
        parts = [Part(np.maximum(distance, -(distance + RING * r)) if hollow else distance, body)]
    else:
        parts = _COMPOSED[entity.shape](entity, body, u, v, r)
    if entity.style == "sketch":
        parts = [drawn for part in parts for drawn in _sketched(part)]
    kept = _kept(entity.structure, u, v, r)
    # Cut at the square of half-side r: the distance to a pointed outline is too small beyond its tips, which
    # would leak a little coverage into the neighbouring cell.
    square = np.maximum(np.abs(u), np.abs(v)) - r
    color_hw3 = np.zeros((*square.shape, 3), np.float32)
    alpha_hw = np.zeros(square.shape, np.float32)
    for part in parts:
        distance = np.maximum(part.distance_hw, square)
        distance = distance if kept is None else np.maximum(distance, kept)
        part_hw = np.clip(0.5 - distance, 0.0, 1.0)
        color_hw3 += part_hw[..., None] * (part.color - color_hw3)
        alpha_hw += part_hw * (1.0 - alpha_hw)
    if entity.style == "mosaic":
        color_hw3, alpha_hw = (_blocks(a, max(1, round(BLOCK * scale))) for a in (color_hw3, alpha_hw))
    if entity.style == "blur":
        color_hw3, alpha_hw = (_blurred(a, max(1, round(1.5 * scale))) for a in (color_hw3, alpha_hw))
    if entity.style in ("mosaic", "blur"):  # neither may leak into the next cell
        inside_hw = np.clip(0.5 - square, 0.0, 1.0)
        color_hw3, alpha_hw = color_hw3 * inside_hw[..., None], alpha_hw * inside_hw
    if entity.defect is not None:
        color, weight_hw = _damage(entity.defect, body, u, v, r, scale)
        weight_hw = weight_hw * alpha_hw
        color_hw3 += (
            weight_hw[..., None] * color - (weight_hw / np.maximum(alpha_hw, 1e-6))[..., None] * color_hw3
        )
    return color_hw3, alpha_hw


def _sketched(part: Part) -> list[Part]:
    """White paper with an ink line along the edge."""
    return [Part(part.distance_hw, _rgb(INK)), Part(part.distance_hw + 1.15, _rgb(PAPER))]


def _blocks(values: Array, side: int) -> Array:
    """Means of side x side blocks, at full size."""
    height, width = values.shape[:2]
    tall, wide = -height % side, -width % side
    padding = ((0, tall), (0, wide), *((0, 0),) * (values.ndim - 2))
    padded = np.pad(values, padding, mode="edge")
    rows, columns = padded.shape[0] // side, padded.shape[1] // side
    means = padded.reshape(rows, side, columns, side, *values.shape[2:]).mean((1, 3))
    return means.repeat(side, 0).repeat(side, 1)[:height, :width]


def _blurred(values: Array, reach: int) -> Array:
    """Box blur over 2 reach + 1 pixels each way; nothing lies outside."""
    for axis in (0, 1):
        padding = [(0, 0)] * values.ndim
        padding[axis] = (reach, reach)
        padded = np.pad(values, padding)
        length = values.shape[axis]
        windows = [padded.take(range(i, i + length), axis) for i in range(2 * reach + 1)]
        values = np.asarray(np.mean(windows, axis=0, dtype=np.float32))
    return values


def _damage(defect: str, body: Array, u: Array, v: Array, r: float, scale: float) -> tuple[Array, Array]:
    """Colour and weight (h, w) of what lies on a damaged thing."""
    if defect == "stain":
        return _rgb(STAIN), np.clip(0.5 - (np.hypot(u - 0.18 * r, v + 0.12 * r) - 0.42 * r), 0.0, 1.0)
    if defect == "scratch":
        lines = np.minimum(np.abs(u - v - 0.42 * r), np.abs(u - v + 0.42 * r)) / 1.4142 - 0.6 * scale
        return _rgb((255, 255, 255)) if body.mean() < 170 else _rgb((70, 70, 78)), np.clip(
            0.5 - lines, 0.0, 1.0
        )
    zigzag = np.abs(u - 0.34 * r * (2 * np.abs(np.mod(v / (0.9 * r) + 0.25, 1.0) * 2 - 1) - 1)) - 0.75 * scale
    return _rgb(INK) if body.mean() > 70 else _rgb((225, 225, 225)), np.clip(0.5 - zigzag, 0.0, 1.0)


def stamp(u: Array, v: Array, scale: float) -> tuple[Array, Array, Array]:
    """A watermark: a pale, half transparent band with four dark letters.

    Returns:
        Colours (h, w, 3), their weight (h, w), and bool (h, w) where it lies.
    """
    half = (STAMP[0] * scale, STAMP[1] * scale)
    distance = _box(u, v, (0.0, 0.0), half)
    letters = np.maximum(
        np.abs(np.mod(u / (3.2 * scale), 1.0) - 0.5) * 3.2 * scale - 0.8 * scale, np.abs(v) - 1.5 * scale
    )
    ink = np.clip(0.5 - np.maximum(letters, np.abs(u) - 6.2 * scale), 0.0, 1.0)[..., None]
    color = 252.0 + ink * (_rgb((96, 96, 104)) - 252.0)
    return color.astype(np.float32), 0.62 * np.clip(0.5 - distance, 0.0, 1.0), distance <= 0.0
