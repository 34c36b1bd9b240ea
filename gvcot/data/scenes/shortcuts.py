"""Ways to find an edit's region without reading its instruction; the benchmark has no sample they solve."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from gvcot.data.scenes.edit import Edit
from gvcot.data.scenes.render import area
from gvcot.data.scenes.world import BACKGROUNDS, COLORS, Backdrop, Entity


def salience(entity: Entity, backdrop: Backdrop) -> float:
    """Area times the contrast of its colour to the wall behind it (distance in sRGB)."""
    wall = BACKGROUNDS[backdrop.walls[backdrop.wall_behind(entity)]]
    contrast = sum((a - b) ** 2 for a, b in zip(COLORS[entity.color], wall, strict=True)) ** 0.5
    return area(entity) * contrast


CLOSE = 0.9
"""Share of the highest rank from which a thing might be taken for the first."""

RULES: MappingProxyType[str, Callable[[Entity, Backdrop], float]] = MappingProxyType(
    {"largest": lambda entity, _: area(entity), "most salient": salience}
)
"""A thing's rank under each rule that looks at the picture alone."""


def solved_by(edit: Edit, referents: tuple[Entity, ...]) -> str | None:
    """What solves this edit without its words, or None.

    Args:
        edit: its source scene is looked at.
        referents: the things of that scene that the instruction names.

    Returns:
        "only one" where nothing else could be meant, or the first of `RULES` by which a referent comes first
        or within a tenth of the first.
    """
    if len(edit.possible) <= len(referents):
        return "only one"
    backdrop = edit.before.backdrop
    for rule, rank in RULES.items():
        best = max(rank(entity, backdrop) for entity in edit.before.entities)
        first = {entity for entity in edit.before.entities if rank(entity, backdrop) >= CLOSE * best}
        if edit.outline == "wall":
            walls = {backdrop.wall_behind(entity) for entity in referents}
            solved = bool(walls & {backdrop.wall_behind(entity) for entity in first})
        else:
            solved = bool(first & set(referents))
        if solved:
            return rule
    return None
