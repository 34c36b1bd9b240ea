"""Tasks that change where a thing is, how much room it takes and how it is built."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np

from gvcot.data.scenes.edit import Edit, Reference, Task, Wording, rebuilt
from gvcot.data.scenes.layout import pick, sizes_of
from gvcot.data.scenes.levels import Level
from gvcot.data.scenes.tasks.attribute import restyle
from gvcot.data.scenes.world import CELL, DIRECTIONS, HUGE, PLAIN_SHAPES, STEPS, STRUCTURES, Scene


class Size(Task):
    """Make a thing one size step larger or smaller about its centre."""

    name = "size"
    by_step = MappingProxyType(
        {
            1: Wording(
                ("make {x} larger", "enlarge {x}", "scale {x} up", "make {x} bigger"),
                ("scale up {x}", "turn {x} larger"),
            ),
            -1: Wording(
                ("make {x} smaller", "shrink {x}", "scale {x} down", "reduce {x}"),
                ("scale down {x}", "turn {x} smaller"),
            ),
        }
    )
    wordings = tuple(by_step.values())

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to everything: what can't grow any more shrinks, and the other way round."""
        (reference,) = references
        entity = reference.entity
        if entity.size == HUGE:
            return restyle(self.by_step[-1], scene, reference, replace(entity, size=STEPS[-1]))
        sizes = sizes_of(entity.shape)
        rank = sizes.index(entity.size)
        step = pick(rng, [s for s in self.by_step if 0 <= rank + s < len(sizes)])
        return restyle(self.by_step[step], scene, reference, replace(entity, size=sizes[rank + step]))


class Movement(Task):
    """Move a thing by exactly one cell."""

    name = "movement"
    wording = Wording(
        ("move {x} {where}", "shift {x} {where}", "slide {x} {where}", "push {x} {where}"),
        ("take {x} {where}", "set {x} {where}"),
    )
    words = MappingProxyType({"left": "to the left", "right": "to the right", "up": "up", "down": "down"})
    wordings = (wording,)
    phrases = tuple(words.values())

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit | None:
        """Applies where there is room beside the thing."""
        (reference,) = references
        entity = reference.entity
        free = scene.free_directions(entity)
        if not free:
            return None
        direction = pick(rng, free)
        dx, dy = DIRECTIONS[direction]
        moved = replace(entity, x=entity.x + dx * CELL, y=entity.y + dy * CELL)
        return restyle(self.wording, scene, reference, moved, where=self.words[direction])


class Structure(Task):
    """Split a shape in two, cut half of it away, or make a broken one whole again."""

    name = "structure"
    shapes = PLAIN_SHAPES
    split = Wording(
        ("split {x} down the middle", "split {x} in two", "cut {x} in two"), ("cut {x} down the middle",)
    )
    cut = Wording(
        (
            "cut off the {side} half of {x}",
            "remove the {side} half of {x}",
            "take the {side} half off {x}",
        ),
        ("take away the {side} half of {x}",),
    )
    join = Wording(
        ("join the halves of {x}", "bring the halves of {x} together"), ("put the halves of {x} together",)
    )
    complete = Wording(
        ("give {x} back its {side} half", "add the missing {side} half of {x}"),
        ("put back the {side} half of {x}",),
    )
    wordings = (split, cut, join, complete)

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to plain shapes. Where a broken one is to be made whole, others are broken too."""
        (reference,) = references
        entity, structure = reference.entity, pick(rng, (STRUCTURES[1], *STRUCTURES[1:]))
        side = structure.removeprefix("no ")
        rivals = tuple(e for e in scene.entities if e.shape in PLAIN_SHAPES)
        if rng.random() < 0.6:
            wording = self.split if structure == "split" else self.cut
            return restyle(wording, scene, reference, replace(entity, structure=structure), rivals, side=side)
        wording = self.join if structure == "split" else self.complete
        spoiled = [entity, *[e for e in rivals if e != entity][: 1 + int(rng.random() * 2)]]
        changes = {e: replace(e, structure=structure) for e in spoiled}
        broken = replace(reference, entity=changes[entity])
        return restyle(wording, rebuilt(scene, changes), broken, entity, tuple(changes.values()), side=side)
