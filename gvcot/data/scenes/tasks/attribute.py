"""Tasks that change what a thing looks like where it stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from gvcot.data.scenes.edit import Edit, Reference, swap
from gvcot.data.scenes.layout import pick
from gvcot.data.scenes.world import COLORS, Scene


class Color:
    """Give a thing another colour; its material stays."""

    name = "color"
    boxed = False
    templates = ("make {x} {color}", "change the color of {x} to {color}", "paint {x} {color}")

    def phrases(self) -> Iterable[str]:
        """Its templates."""
        return self.templates

    def plan(self, scene: Scene, reference: Reference, rng: np.random.Generator) -> Edit:
        """Applies to every entity."""
        entity = reference.entity
        color = pick(rng, [name for name in COLORS if name != entity.color])
        return Edit(
            instruction=pick(rng, self.templates).format(x=reference, color=color),
            before=scene,
            after=swap(scene, entity, replace(entity, color=color)),
            marked=(entity,),
            caption=f"a {entity.describe()}",
        )
