"""Tasks that change what a thing looks like where it stands."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np

from gvcot.data.scenes.edit import Edit, Reference, Task, Wording, swap
from gvcot.data.scenes.layout import pick
from gvcot.data.scenes.levels import Level
from gvcot.data.scenes.world import COLORS, DOOR, LAMP, MATERIALS, STATES, STYLES, Entity, Scene


def restyle(
    wording: Wording,
    scene: Scene,
    reference: Reference,
    replacement: Entity,
    rivals: tuple[Entity, ...] = (),
    **slots: str,
) -> Edit:
    """The edit that puts `replacement` in the place of the thing referred to."""
    return Edit(
        wording=wording,
        slots={"x": str(reference), **slots},
        before=scene,
        after=swap(scene, reference.entity, replacement),
        marked=(reference.entity,),
        rivals=rivals,
        caption=f"a {reference.entity.describe()}",
    )


class Color(Task):
    """Give a thing another colour, or at low energy another shade of its own; its material stays."""

    name = "color"
    another = Wording(
        ("make {x} {color}", "change the color of {x} to {color}", "paint {x} {color}"),
        ("give {x} the color {color}", "turn {x} {color}"),
    )
    shade = Wording(
        ("make {x} a shade {tone}", "change {x} to a {tone} shade", "paint {x} a shade {tone}"),
        ("give {x} a {tone} shade", "turn {x} a shade {tone}"),
    )
    wordings = (another, shade)

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to everything."""
        (reference,) = references
        entity = reference.entity
        if level.energy < 1:
            # A colour that is nearly white can't show a lighter shade, nor one nearly black a darker one.
            brightness = sum(COLORS[entity.color]) / 3
            lighter = brightness < 90 or (brightness < 165 and rng.random() < 0.5)
            new = replace(entity, shade=level.energy if lighter else -level.energy)
            return restyle(self.shade, scene, reference, new, tone="lighter" if lighter else "darker")
        color = pick(rng, [name for name in COLORS if name != entity.color])
        return restyle(self.another, scene, reference, replace(entity, color=color), color=color)


class Material(Task):
    """Give a thing another texture or surface; its colour stays."""

    name = "material"
    wording = Wording(
        ("make {x} {material}", "give {x} a {material} surface", "change the material of {x} to {material}"),
        ("turn {x} {material}", "change the surface of {x} to {material}"),
    )
    wordings = (wording,)

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to everything."""
        (reference,) = references
        material = pick(rng, [name for name in MATERIALS if name != reference.entity.material])
        new = replace(reference.entity, material=material)
        return restyle(self.wording, scene, reference, new, material=material)


class State(Task):
    """Turn a lamp on or off, open or close a door, hollow a shape out or fill it."""

    name = "state"
    shapes = (*(s for s, states in STATES.items() if states == ("filled", "hollow")), LAMP, DOOR)
    by_state = MappingProxyType(
        {
            "filled": Wording(("fill {x}", "fill {x} in", "make {x} filled"), ("turn {x} filled",)),
            "hollow": Wording(("hollow {x} out", "make {x} hollow", "empty {x}"), ("turn {x} hollow",)),
            "lit": Wording(("turn {x} on", "switch {x} on", "make {x} lit"), ("switch on {x}",)),
            "unlit": Wording(("turn {x} off", "switch {x} off", "make {x} unlit"), ("switch off {x}",)),
            "open": Wording(("open {x}", "make {x} open", "turn {x} open"), ("switch {x} to open",)),
            "closed": Wording(("close {x}", "shut {x}", "make {x} closed"), ("switch {x} to closed",)),
        }
    )
    wordings = tuple(by_state.values())

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to what can be in another state; rivals are of its shape and in its state."""
        (reference,) = references
        entity = reference.entity
        (state,) = (s for s in STATES[entity.shape] if s != entity.state)
        rivals = tuple(e for e in scene.entities if state in STATES[e.shape] and e.state != state)
        return restyle(self.by_state[state], scene, reference, replace(entity, state=state), rivals)


class Style(Task):
    """Draw one thing in another style: as an ink sketch, as a mosaic of blocks, or blurred."""

    name = "style"
    by_style = MappingProxyType(
        {
            "sketch": Wording(
                ("draw {x} as a sketch", "turn {x} into a sketch", "sketch {x}"), ("make {x} a sketch",)
            ),
            "mosaic": Wording(
                ("draw {x} as a mosaic", "turn {x} into a mosaic", "pixelate {x}"), ("make {x} a mosaic",)
            ),
            "blur": Wording(("blur {x}", "make {x} blurred", "draw {x} blurred"), ("turn {x} blurred",)),
        }
    )
    wordings = tuple(by_style.values())

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to everything."""
        (reference,) = references
        style = pick(rng, STYLES[1:])
        return restyle(self.by_style[style], scene, reference, replace(reference.entity, style=style))
