"""Drawing a scene: crowded, and with entities that are alike on purpose.

A scene has one or two *families*: entities that share their shape, their colour or both, so that naming
one attribute alone is ambiguous and the whole reference is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from gvcot.data.scenes.world import (
    BACKGROUNDS,
    CELL,
    COLORS,
    GRID,
    JITTER,
    MATERIALS,
    SHAPES,
    SIZES,
    Entity,
    Scene,
)

T = TypeVar("T")

CROWDED = (4, 9)
"""Fewest and most entities of a scene, by default."""

_COLOR_NAMES = tuple(COLORS)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)
# Half of all things are plain: textures are the exception that makes "the striped circle" worth saying.
_MATERIAL_DRAW = ("plain", "plain", *MATERIALS[1:])


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One item, uniformly. (Generator.choice costs twenty times as much.)"""
    return items[int(rng.random() * len(items))]


def sample_scene(rng: np.random.Generator, entities: tuple[int, int] = CROWDED) -> Scene:
    """A random scene with at least entities[0] and at most entities[1] things in it."""
    fewest, most = entities
    count = fewest + int(rng.random() * (most - fewest + 1))
    families = _families(rng, count)
    cells = rng.permutation(GRID * GRID)[:count].tolist()
    jitter = rng.uniform(-JITTER, JITTER, (count, 2)).tolist()
    things: list[Entity] = []
    for (shape, color), cell, (dx, dy) in zip(families, cells, jitter, strict=True):
        row, column = divmod(cell, GRID)
        things.append(
            Entity(
                shape=shape or pick(rng, SHAPES),
                color=color or pick(rng, _COLOR_NAMES),
                material=pick(rng, _MATERIAL_DRAW),
                size=pick(rng, SIZES),
                x=(column + 0.5) * CELL + dx,
                y=(row + 0.5) * CELL + dy,
            )
        )
    return Scene(background=pick(rng, _BACKGROUND_NAMES), entities=tuple(things))


def _families(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """(shape, colour) per entity; an empty string leaves the attribute to chance."""
    traits: list[tuple[str, str]] = []
    for _ in range(2 if count >= 6 and rng.random() < 0.7 else 1):
        members = 2 + int(rng.random() * 3)
        kind = rng.random()
        shape = pick(rng, SHAPES) if kind < 0.7 else ""
        color = pick(rng, _COLOR_NAMES) if kind > 0.4 else ""
        traits.extend([(shape, color)] * members)
    traits.extend([("", "")] * count)
    return traits[:count]
