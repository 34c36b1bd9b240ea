"""What a task is: it takes a scene and something in it, and says how the scene changes and in which words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from gvcot.data.scenes.expressions import Expression
from gvcot.data.scenes.levels import Level
from gvcot.data.scenes.world import SHAPES, Backdrop, Entity, Scene


@dataclass(frozen=True, slots=True)
class Wording:
    """Ways to say one edit, with the placeholders `{x}`, `{y}` and those of the task.

    The benchmark says everything in ways that training never uses, made of words that training knows.
    """

    train: tuple[str, ...]
    bench: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """An entity and the words that single it out."""

    entity: Entity
    expression: Expression

    def __str__(self) -> str:
        return self.expression.to_text()


Outline = Literal["thing", "box", "stamp", "wall"]
"""What of an entity is marked: its silhouette, a rectangle around it, the watermark on it, or the wall behind
it without what stands before that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """One edit: two scenes, the words, and the region."""

    wording: Wording
    """How it can be said."""

    slots: Mapping[str, str]
    """What the placeholders of the wording stand for."""

    before: Scene
    """What the source image shows."""

    after: Scene
    """What the target image shows."""

    marked: tuple[Entity, ...]
    """What the instruction refers to. For an insertion it does not stand in `before`."""

    outline: Outline = "thing"
    """Which part of them is the region."""

    rivals: tuple[Entity, ...] = field(default=())
    """Everything in `before` that the same edit could be meant for, the referents among it. Empty: all."""

    caption: str
    """The region in words."""

    @property
    def possible(self) -> tuple[Entity, ...]:
        """`rivals`, or all."""
        return self.rivals or self.before.entities


ANYTHING = SHAPES


class Task(ABC):
    """One kind of edit. Add one by deriving a class and naming it in the table of `tasks`."""

    name: str
    """The task's name."""

    wordings: tuple[Wording, ...]
    """Every wording of it, for the vocabulary."""

    shapes: tuple[str, ...] = ANYTHING
    """What it can be done to."""

    num_references: int = 1
    """How many things its instruction refers to."""

    phrases: tuple[str, ...] = ()
    """Further words of its slots and captions, for the vocabulary."""

    @abstractmethod
    def plan(
        self, scene: Scene, references: tuple[Reference, ...], rng: np.random.Generator, level: Level
    ) -> Edit | None:
        """The edit of this scene, or None where the task does not apply to it.

        Args:
            scene: what is there. The edit's `before` need not be the same: it may be spoiled first, but
                everything stays in its place.
            references: things of the scene and their words, `num_references` of them.
            rng: everything is drawn from it.
            level: how hard the world is.
        """


def swap(scene: Scene, old: Entity, new: Entity | None) -> Scene:
    """The scene with `old` replaced by `new`, or taken out."""
    kept = tuple(entity if entity != old else new for entity in scene.entities)
    return replace(scene, entities=tuple(e for e in kept if e is not None))


def rebuilt(scene: Scene, changes: Mapping[Entity, Entity]) -> Scene:
    """The scene with several things replaced."""
    return replace(scene, entities=tuple(changes.get(entity, entity) for entity in scene.entities))


def with_backdrop(scene: Scene, backdrop: Backdrop) -> Scene:
    """The same things before another backdrop."""
    return replace(scene, backdrop=backdrop)
