"""Tasks that change a person: what it wears, what it does, how it holds its arms."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np

from gvcot.data.scenes.edit import Edit, Reference, Task, Wording, rebuilt
from gvcot.data.scenes.layout import pick
from gvcot.data.scenes.levels import Level
from gvcot.data.scenes.tasks.attribute import restyle
from gvcot.data.scenes.world import ARMS, COLORS, PERSON, STATES, Entity, Figure, Scene


def figure_of(entity: Entity) -> Figure:
    """What a person has beyond the shirt."""
    return entity.figure or Figure()


def _people(scene: Scene) -> tuple[Entity, ...]:
    return tuple(e for e in scene.entities if e.shape == PERSON)


class HumanAttribute(Task):
    """Give a person a hat or trousers of a colour, or take the hat off."""

    name = "human_attribute"
    shapes = (PERSON,)
    hat = Wording(
        ("give {x} a {color} hat", "put a {color} hat on {x}", "add a {color} hat to {x}"),
        ("draw a {color} hat on {x}", "set a {color} hat on {x}"),
    )
    bare = Wording(
        ("take the hat off {x}", "remove the hat of {x}", "take away the hat of {x}"),
        ("remove the hat from {x}",),
    )
    trousers = Wording(
        (
            "give {x} {color} trousers",
            "change the trousers of {x} to {color}",
            "paint the trousers of {x} {color}",
        ),
        ("make the trousers of {x} {color}",),
    )
    wordings = (hat, bare, trousers)

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to people. Where a hat is to go, others wear one as well."""
        (reference,) = references
        entity, kind = reference.entity, rng.random()
        figure = figure_of(entity)
        if kind < 0.4:
            color = pick(rng, [name for name in COLORS if name != entity.color])
            new = replace(entity, figure=replace(figure, trousers=color))
            return restyle(self.trousers, scene, reference, new, _people(scene), color=color)
        if kind < 0.75 or figure.hat is not None:
            color = pick(rng, [name for name in COLORS if name not in (entity.color, figure.hat)])
            new = replace(entity, figure=replace(figure, hat=color))
            return restyle(self.hat, scene, reference, new, _people(scene), color=color)
        changes = {}
        for person in _people(scene):
            if figure_of(person).hat is None:
                color = pick(rng, [name for name in COLORS if name != person.color])
                changes[person] = replace(person, figure=replace(figure_of(person), hat=color))
        before = rebuilt(scene, changes)
        wearing = replace(reference, entity=changes[entity])
        return restyle(self.bare, before, wearing, entity, _people(before))


class Motion(Task):
    """Make a person stand, walk or jump."""

    name = "motion"
    shapes = (PERSON,)
    by_state = MappingProxyType(
        {
            "standing": Wording(
                ("make {x} stand still", "let {x} stand still", "stop {x}"), ("set {x} to stand still",)
            ),
            "walking": Wording(("make {x} walk", "let {x} walk", "set {x} walking"), ("set {x} to walk",)),
            "jumping": Wording(("make {x} jump", "let {x} jump", "set {x} jumping"), ("set {x} to jump",)),
        }
    )
    wordings = tuple(by_state.values())

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to people; rivals are those that don't yet do it."""
        (reference,) = references
        entity = reference.entity
        state = pick(rng, [s for s in STATES[PERSON] if s != entity.state])
        rivals = tuple(e for e in _people(scene) if e.state != state)
        return restyle(self.by_state[state], scene, reference, replace(entity, state=state), rivals)


class Pose(Task):
    """Make a person hold its arms up, out or down."""

    name = "pose"
    shapes = (PERSON,)
    by_arms = MappingProxyType(
        {
            "up": Wording(
                ("raise the arms of {x}", "make {x} raise both arms", "let {x} hold both arms up"),
                ("put both arms of {x} up",),
            ),
            "out": Wording(
                ("spread the arms of {x}", "make {x} spread both arms", "let {x} hold both arms out"),
                ("put both arms of {x} out",),
            ),
            "down": Wording(
                ("lower the arms of {x}", "make {x} lower both arms", "let {x} hold both arms down"),
                ("put both arms of {x} down",),
            ),
        }
    )
    wordings = tuple(by_arms.values())

    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit:
        """Applies to people; rivals are those who hold them otherwise."""
        (reference,) = references
        entity = reference.entity
        arms = pick(rng, [a for a in ARMS if a != figure_of(entity).arms])
        rivals = tuple(e for e in _people(scene) if figure_of(e).arms != arms)
        new = replace(entity, figure=replace(figure_of(entity), arms=arms))
        return restyle(self.by_arms[arms], scene, reference, new, rivals)
