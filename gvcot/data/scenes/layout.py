"""Drawing a scene around a referent: how many things there are, and how many of them look alike.

Look-alikes share the referent's shape, its colour or both, so that naming one attribute alone is ambiguous
and the whole reference is needed. All others share neither, and may form a family of their own: being one of
several alike does not give the referent away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from gvcot.data.scenes.levels import Level
from gvcot.data.scenes.world import (
    BACKGROUNDS,
    CELL,
    COLORS,
    HUGE,
    JITTER,
    MATERIALS,
    PERSON,
    SHAPES,
    STATES,
    STEPS,
    Backdrop,
    Entity,
    Figure,
    Scene,
    cells_at,
)

T = TypeVar("T")

HUGE_SHARE = 0.5
"""Share of the scenes that hold a huge thing, at levels that allow one."""

DECOYS = 0.7
"""Share of the scenes in which things that are not alike the referent are alike among themselves."""

_COLOR_NAMES = tuple(COLORS)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)
# Half of all things are plain: textures are the exception that makes "the striped circle" worth saying.
_MATERIAL_DRAW = ("plain", "plain", "plain", *MATERIALS[1:])


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One item, uniformly. (Generator.choice costs twenty times as much.)"""
    return items[int(rng.random() * len(items))]


def between(rng: np.random.Generator, span: tuple[int, int]) -> int:
    """A whole number from the first to the second, both included."""
    return span[0] + int(rng.random() * (span[1] - span[0] + 1))


def shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    """A permutation made of uniform floats alone, so that no platform's integer width has a part in it."""
    order = sorted((rng.random(), i) for i in range(len(items)))
    return [items[i] for _, i in order]


def sizes_of(shape: str) -> tuple[str, ...]:
    """Sizes in which a shape is shown: a small person's limbs would be thinner than a pixel."""
    return STEPS[1:] if shape == PERSON else STEPS


def sample_scene(rng: np.random.Generator, level: Level, shapes: Sequence[str] = SHAPES) -> Scene | None:
    """A random scene whose first thing is to be the referent, or None where the things found no room.

    Args:
        rng: everything is drawn from it.
        level: how many things there are, and how many look alike.
        shapes: what the referent may be; where that is not everything, look-alikes share its shape.
    """
    count = between(rng, level.entities)
    num_alike = min(between(rng, level.look_alikes), count - 1)
    shape, color = pick(rng, shapes), pick(rng, _COLOR_NAMES)
    traits = [(shape, color), *_alike(rng, shape, color, num_alike, fixed_shape=len(shapes) < len(SHAPES))]
    traits += _others(rng, shape, color, count - len(traits))
    places = _places(rng, level, traits)
    if places is None:
        return None
    things = [_thing(rng, *trait, *place) for trait, place in zip(traits, places, strict=True)]
    return Scene(level.grid, Backdrop((pick(rng, _BACKGROUND_NAMES),)), tuple(things))


def _alike(
    rng: np.random.Generator, shape: str, color: str, count: int, *, fixed_shape: bool
) -> list[tuple[str, str]]:
    kind = rng.random() * (0.7 if fixed_shape else 1.0)
    found = []
    for _ in range(count):
        own_shape = shape if kind < 0.7 else pick(rng, [s for s in SHAPES if s != shape])
        own_color = color if kind >= 0.4 else pick(rng, [c for c in _COLOR_NAMES if c != color])
        found.append((own_shape, own_color))
    return found


def _others(rng: np.random.Generator, shape: str, color: str, count: int) -> list[tuple[str, str]]:
    shapes, colors = [s for s in SHAPES if s != shape], [c for c in _COLOR_NAMES if c != color]
    found = [(pick(rng, shapes), pick(rng, colors)) for _ in range(count)]
    if count >= 2 and rng.random() < DECOYS:
        size, same_shape, same_color = (
            min(count, 2 + int(rng.random() * 3)),
            rng.random() < 0.7,
            rng.random() < 0.6,
        )
        first = found[0]
        for i in range(1, size):
            found[i] = (first[0] if same_shape else found[i][0], first[1] if same_color else found[i][1])
    return found


def _places(
    rng: np.random.Generator, level: Level, traits: list[tuple[str, str]]
) -> list[tuple[str, float, float]] | None:
    """(size, x, y) of each thing."""
    count = len(traits)
    sizes = [pick(rng, sizes_of(shape)) for shape, _ in traits]
    free = set(range(level.grid * level.grid))
    centers: list[tuple[float, float]] = [(0.0, 0.0)] * count
    jitter = [((2 * rng.random() - 1) * JITTER, (2 * rng.random() - 1) * JITTER) for _ in range(count)]
    order = list(range(count))
    if level.huge and count + 3 <= len(free) and rng.random() < HUGE_SHARE:
        large = int(rng.random() * count)
        column, row = (1 + int(rng.random() * (level.grid - 1)) for _ in range(2))
        sizes[large] = HUGE
        centers[large] = (column * CELL, row * CELL)
        free -= {r * level.grid + c for c, r in cells_at(*centers[large], HUGE)}
        order.remove(large)
    if len(order) > len(free):
        return None
    for i, cell in zip(order, shuffled(rng, sorted(free)), strict=False):  # there may be free cells left
        row, column = divmod(cell, level.grid)
        centers[i] = ((column + 0.5) * CELL, (row + 0.5) * CELL)
    return [(size, x + dx, y + dy) for size, (x, y), (dx, dy) in zip(sizes, centers, jitter, strict=True)]


def _thing(rng: np.random.Generator, shape: str, color: str, size: str, x: float, y: float) -> Entity:
    states = STATES[shape]
    state = states[0] if rng.random() < 0.5 else pick(rng, states)
    figure = None
    if shape == PERSON:
        hat = pick(rng, [c for c in _COLOR_NAMES if c != color]) if rng.random() < 0.3 else None
        figure = Figure(arms=pick(rng, ("down", "down", "out", "up")), hat=hat)
    return Entity(shape, color, pick(rng, _MATERIAL_DRAW), size, x, y, state, figure)
