"""Tasks that make good what was done to a picture. Others in the scene are spoiled in the same way."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np

from gvcot.data.scenes.edit import Edit, Reference, Task, Wording, rebuilt
from gvcot.data.scenes.layout import pick, shuffled
from gvcot.data.scenes.levels import Level
from gvcot.data.scenes.tasks.attribute import restyle
from gvcot.data.scenes.world import DEFECTS, Entity, Scene


def _spoiled(scene: Scene, entity: Entity, rng: np.random.Generator) -> list[Entity]:
    """The referent and one or two others."""
    others = shuffled(rng, [e for e in scene.entities if e != entity])
    return [entity, *others[: 1 + int(rng.random() * 2)]]


class Repair(Task):
    """Take a scratch, a stain or a crack away."""

    name = "repair"
    by_defect = MappingProxyType(
        {
            "scratch": Wording(
                ("repair the scratch on {x}", "remove the scratch on {x}", "fix the scratch of {x}"),
                ("erase the scratch of {x}",),
            ),
            "stain": Wording(
                ("clean the stain off {x}", "remove the stain on {x}", "wipe the stain off {x}"),
                ("erase the stain of {x}",),
            ),
            "crack": Wording(
                ("repair the crack in {x}", "close the crack in {x}", "fix the crack of {x}"),
                ("erase the crack of {x}",),
            ),
        }
    )
    wordings = tuple(by_defect.values())

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to everything; rivals have the same kind of damage."""
        (reference,) = references
        defect = pick(rng, DEFECTS)
        changes = {e: replace(e, defect=defect) for e in _spoiled(scene, reference.entity, rng)}
        damaged = replace(reference, entity=changes[reference.entity])
        before = rebuilt(scene, changes)
        return restyle(self.by_defect[defect], before, damaged, reference.entity, tuple(changes.values()))


class Watermark(Task):
    """Take a watermark off a thing; the band is the region."""

    name = "watermark"
    wording = Wording(
        ("remove the watermark from {x}", "erase the watermark on {x}", "take the watermark off {x}"),
        ("delete the watermark on {x}", "clean the watermark off {x}"),
    )
    wordings = (wording,)
    phrases = ("the watermark on",)

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to everything; rivals bear one too."""
        (reference,) = references
        changes = {e: replace(e, stamped=True) for e in _spoiled(scene, reference.entity, rng)}
        stamped = replace(reference, entity=changes[reference.entity])
        edit = restyle(
            self.wording, rebuilt(scene, changes), stamped, reference.entity, tuple(changes.values())
        )
        return replace(edit, outline="stamp", caption=f"the watermark on {edit.caption}")
