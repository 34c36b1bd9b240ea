"""Tasks that ask for several things at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gvcot.data.scenes.edit import Edit, Reference, Task, Wording, rebuilt, swap
from gvcot.data.scenes.layout import pick, sizes_of
from gvcot.data.scenes.levels import Level
from gvcot.data.scenes.tasks.attribute import restyle
from gvcot.data.scenes.world import COLORS, HUGE, MATERIALS, Scene


class MultiAttributes(Task):
    """Change a thing's colour and its material or size."""

    name = "multi_attribute"
    wording = Wording(
        ("make {x} {color} and {other}", "turn {x} {color} and {other}", "make {x} both {color} and {other}"),
        ("make {x} {other} and {color}", "turn {x} {other} and {color}"),
    )
    wordings = (wording,)
    phrases = ("larger", "smaller")

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to everything."""
        (reference,) = references
        entity = reference.entity
        color = pick(rng, [name for name in COLORS if name != entity.color])
        sizes = sizes_of(entity.shape)
        if rng.random() < 0.5 or entity.size == HUGE:
            other = pick(rng, [name for name in MATERIALS if name != entity.material])
            new = replace(entity, color=color, material=other)
        else:
            rank = sizes.index(entity.size)
            step = pick(rng, [s for s in (-1, 1) if 0 <= rank + s < len(sizes)])
            other = "larger" if step > 0 else "smaller"
            new = replace(entity, color=color, size=sizes[rank + step])
        return restyle(self.wording, scene, reference, new, color=color, other=other)


class MultiSubjects(Task):
    """Remove two things, or give both one colour."""

    name = "multi_subject"
    num_references = 2
    removal = Wording(
        ("remove {x} and {y}", "delete {x} and {y}", "take {x} and {y} away"), ("take away {x} and {y}",)
    )
    color = Wording(
        (
            "make {x} and {y} {color}",
            "paint {x} and {y} {color}",
            "change the color of {x} and {y} to {color}",
        ),
        ("turn {x} and {y} {color}",),
    )
    wordings = (removal, color)

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit | None:
        """Applies to two things that both can take a new colour."""
        entities = tuple(reference.entity for reference in references)
        slots = dict(zip("xy", map(str, references), strict=True))
        if rng.random() < 0.5:
            wording, after = self.removal, swap(swap(scene, entities[0], None), entities[1], None)
        else:
            color = pick(rng, [name for name in COLORS if name not in {e.color for e in entities}])
            wording, after = self.color, rebuilt(scene, {e: replace(e, color=color) for e in entities})
            slots["color"] = color
        return Edit(
            wording=wording,
            slots=slots,
            before=scene,
            after=after,
            marked=entities,
            caption=" and ".join(f"a {entity.describe()}" for entity in entities),
        )
