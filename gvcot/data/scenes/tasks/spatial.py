"""Tasks that change where a thing is or how much room it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from gvcot.data.scenes.edit import Edit, Reference, swap
from gvcot.data.scenes.layout import pick
from gvcot.data.scenes.world import CELL, DIRECTIONS, SIZES, Scene


class Size:
    """Make a thing one size step larger or smaller about its centre."""

    name = "size"
    boxed = False
    templates = MappingProxyType(
        {
            1: ("make {x} larger", "enlarge {x}", "scale up {x}"),
            -1: ("make {x} smaller", "shrink {x}", "scale down {x}"),
        }
    )

    def phrases(self) -> Iterable[str]:
        """Its templates."""
        return (template for templates in self.templates.values() for template in templates)

    def plan(self, scene: Scene, reference: Reference, rng: np.random.Generator) -> Edit:
        """Applies to every entity: what can't grow any more shrinks, and the other way round."""
        entity = reference.entity
        rank = SIZES.index(entity.size)
        step = pick(rng, [s for s in self.templates if 0 <= rank + s < len(SIZES)])
        return Edit(
            instruction=pick(rng, self.templates[step]).format(x=reference),
            before=scene,
            after=swap(scene, entity, replace(entity, size=SIZES[rank + step])),
            marked=(entity,),
            caption=f"a {entity.describe()}",
        )


class Movement:
    """Move a thing by exactly one cell."""

    name = "movement"
    boxed = False
    templates = ("move {x} {where}", "shift {x} {where}", "slide {x} {where}")
    words = MappingProxyType({"left": "to the left", "right": "to the right", "up": "up", "down": "down"})

    def phrases(self) -> Iterable[str]:
        """Its templates, directions."""
        return (*self.templates, *self.words.values())

    def plan(self, scene: Scene, reference: Reference, rng: np.random.Generator) -> Edit | None:
        """Applies where a cell beside the entity is free."""
        entity = reference.entity
        free = scene.free_directions(entity)
        if not free:
            return None
        direction = pick(rng, free)
        dx, dy = DIRECTIONS[direction]
        moved = replace(entity, x=entity.x + dx * CELL, y=entity.y + dy * CELL)
        return Edit(
            instruction=pick(rng, self.templates).format(x=reference, where=self.words[direction]),
            before=scene,
            after=swap(scene, entity, moved),
            marked=(entity,),
            caption=f"a {entity.describe()}",
        )
