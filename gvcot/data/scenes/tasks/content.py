"""Tasks that change which things there are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gvcot.data.scenes.edit import Edit, Reference, swap
from gvcot.data.scenes.expressions import RELATIONS
from gvcot.data.scenes.layout import pick
from gvcot.data.scenes.world import CELL, COLORS, DIRECTIONS, MATERIALS, SHAPES, SIZES, Entity, Scene


class Removal:
    """Take a thing away; the background shows."""

    name = "removal"
    boxed = False
    templates = ("remove {x}", "delete {x}", "take away {x}")

    def phrases(self) -> Iterable[str]:
        """Its templates."""
        return self.templates

    def plan(self, scene: Scene, reference: Reference, rng: np.random.Generator) -> Edit:
        """Applies to every entity."""
        return Edit(
            instruction=pick(rng, self.templates).format(x=reference),
            before=scene,
            after=swap(scene, reference.entity, None),
            marked=(reference.entity,),
            caption=f"a {reference.entity.describe()}",
        )


class Insertion:
    """Put a new thing one cell beside another, so that its place follows from the words."""

    name = "insertion"
    boxed = True
    templates = ("add a {new} {where} {x}", "put a {new} {where} {x}", "insert a {new} {where} {x}")

    def phrases(self) -> Iterable[str]:
        """Its templates and captions."""
        return (*self.templates, "the empty place")

    def plan(self, scene: Scene, reference: Reference, rng: np.random.Generator) -> Edit | None:
        """Applies where a cell beside the entity is free."""
        free = scene.free_directions(reference.entity)
        if not free:
            return None
        direction = pick(rng, free)
        dx, dy = DIRECTIONS[direction]
        new = Entity(
            shape=pick(rng, SHAPES),
            color=pick(rng, tuple(COLORS)),
            material=pick(rng, (MATERIALS[0], *MATERIALS)),
            size=pick(rng, SIZES),
            x=reference.entity.x + dx * CELL,
            y=reference.entity.y + dy * CELL,
        )
        where = RELATIONS[direction]
        return Edit(
            instruction=pick(rng, self.templates).format(new=new.describe(), where=where, x=reference),
            before=scene,
            after=Scene(background=scene.background, entities=(*scene.entities, new)),
            marked=(new,),
            caption=f"the empty place {where} a {reference.entity.describe()}",
        )
