"""Tasks that change which things there are, and what is behind them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gvcot.data.scenes.edit import Edit, Reference, Task, Wording, swap, with_backdrop
from gvcot.data.scenes.expressions import RELATIONS
from gvcot.data.scenes.layout import pick, sizes_of
from gvcot.data.scenes.levels import Level
from gvcot.data.scenes.render import VISIBLE
from gvcot.data.scenes.tasks.attribute import restyle
from gvcot.data.scenes.world import (
    BACKGROUNDS,
    CELL,
    COLORS,
    DIRECTIONS,
    HUGE,
    MATERIALS,
    SHAPES,
    Backdrop,
    Entity,
    Scene,
)


class Removal(Task):
    """Take a thing away; the background shows."""

    name = "removal"
    wording = Wording(
        ("remove {x}", "delete {x}", "take {x} away", "erase {x}"), ("take away {x}", "cut {x} away")
    )
    wordings = (wording,)

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to everything."""
        (reference,) = references
        return Edit(
            wording=self.wording,
            slots={"x": str(reference)},
            before=scene,
            after=swap(scene, reference.entity, None),
            marked=(reference.entity,),
            caption=f"a {reference.entity.describe()}",
        )


class Insertion(Task):
    """Put a new thing one cell beside another, so that its place follows from the words."""

    name = "insertion"
    wording = Wording(
        ("add a {new} {where} {x}", "put a {new} {where} {x}", "insert a {new} {where} {x}"),
        ("draw a {new} {where} {x}", "set a {new} {where} {x}"),
    )
    wordings = (wording,)
    phrases = ("the empty place",)

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit | None:
        """Applies where a cell beside the thing is free, and it takes one cell only."""
        (reference,) = references
        free = scene.free_directions(reference.entity)
        if not free or reference.entity.size == HUGE:
            return None
        direction = pick(rng, free)
        dx, dy = DIRECTIONS[direction]
        shape = pick(rng, SHAPES)
        new = Entity(
            shape=shape,
            color=pick(rng, tuple(COLORS)),
            material=pick(rng, (MATERIALS[0], MATERIALS[0], *MATERIALS)),
            size=pick(rng, sizes_of(shape)),
            x=reference.entity.x + dx * CELL,
            y=reference.entity.y + dy * CELL,
        )
        where = RELATIONS[direction]
        return Edit(
            wording=self.wording,
            slots={"new": new.describe(), "where": where, "x": str(reference)},
            before=scene,
            after=replace(scene, entities=(*scene.entities, new)),
            marked=(new,),
            outline="box",
            caption=f"the empty place {where} a {reference.entity.describe()}",
        )


class Change(Task):
    """Put another thing of the same size in the place of one."""

    name = "change"
    wording = Wording(
        (
            "replace {x} with a {new}",
            "turn {x} into a {new}",
            "change {x} into a {new}",
            "swap {x} for a {new}",
        ),
        ("make {x} a {new}", "change {x} for a {new}"),
    )
    wordings = (wording,)

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to everything; a person is put only where there is room for one."""
        (reference,) = references
        old = reference.entity
        shape = pick(
            rng, [s for s in SHAPES if s != old.shape and (old.size in sizes_of(s) or old.size == HUGE)]
        )
        new = Entity(shape, pick(rng, tuple(COLORS)), MATERIALS[0], old.size, old.x, old.y)
        return restyle(self.wording, scene, reference, new, new=f"{new.color} {new.shape}")


class Background(Task):
    """Repaint the wall behind a thing, in a room with two walls."""

    name = "background"
    wording = Wording(
        (
            "change the background behind {x} to {color}",
            "paint the wall behind {x} {color}",
            "make the background behind {x} {color}",
        ),
        ("change the wall behind {x} to {color}", "paint the background behind {x} {color}"),
    )
    wordings = (wording,)
    phrases = ("the wall behind",)

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit | None:
        """Applies to what stands wholly before one wall."""
        (reference,) = references
        walls = pick(rng, [(a, b) for a in BACKGROUNDS for b in BACKGROUNDS if _differ(a, b)])
        cut = pick(rng, range(1, scene.grid) if scene.grid < 4 else range(2, scene.grid - 1))
        backdrop = Backdrop(walls, "upright" if rng.random() < 0.5 else "level", cut)
        entity = reference.entity
        axis = 0 if backdrop.seam == "upright" else 1
        if len({cell[axis] >= cut for cell in entity.cells}) > 1:
            return None
        behind = backdrop.wall_behind(entity)
        color = pick(
            rng, [name for name in BACKGROUNDS if name not in walls and _differ(name, walls[behind])]
        )
        new = tuple(color if i == behind else name for i, name in enumerate(walls))
        before = with_backdrop(scene, backdrop)
        return Edit(
            wording=self.wording,
            slots={"x": str(reference), "color": color},
            before=before,
            after=with_backdrop(scene, replace(backdrop, walls=new)),
            marked=(entity,),
            outline="wall",
            caption=f"the wall behind a {entity.describe()}",
        )


def _differ(one: str, other: str) -> bool:
    return max(abs(a - b) for a, b in zip(BACKGROUNDS[one], BACKGROUNDS[other], strict=True)) > VISIBLE


class Extraction(Task):
    """Take everything away but one thing."""

    name = "extraction"
    wording = Wording(
        ("extract {x}", "keep only {x}", "isolate {x}", "cut {x} out alone"),
        ("cut out {x} alone", "take {x} out alone"),
    )
    wordings = (wording,)

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit | None:
        """Applies where there is something else."""
        (reference,) = references
        if len(scene.entities) < 2:
            return None
        return Edit(
            wording=self.wording,
            slots={"x": str(reference)},
            before=scene,
            after=replace(scene, entities=(reference.entity,)),
            marked=(reference.entity,),
            caption=f"a {reference.entity.describe()}",
        )
