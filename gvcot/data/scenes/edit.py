"""What a task is: it takes a scene and something in it, and says how the scene changes and in which words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gvcot.data.scenes.expressions import Expression
from gvcot.data.scenes.world import Entity, Scene


@dataclass(frozen=True, slots=True)
class Reference:
    """An entity and the words that single it out."""

    entity: Entity
    expression: Expression

    def __str__(self) -> str:
        return self.expression.to_text()


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """One edit: two scenes, the words, and the region."""

    instruction: str
    """In words of the vocabulary."""

    before: Scene
    """What the source image shows."""

    after: Scene
    """What the target image shows."""

    marked: tuple[Entity, ...]
    """What the instruction refers to: its silhouettes are the mask, or its rectangles where the task
    paints boxes. Need not stand in `before`."""

    caption: str
    """The region in words."""


class Task(Protocol):
    """One kind of edit. Add one by writing such a class and naming it in the table of `tasks`."""

    name: str
    """The task's name."""

    boxed: bool
    """Paint filled rectangles around what is marked rather than silhouettes."""

    def phrases(self) -> Iterable[str]:
        """Every phrase of its own that its instructions and captions use, for the vocabulary."""
        ...

    def plan(self, scene: Scene, reference: Reference, rng: np.random.Generator) -> Edit | None:
        """The edit of this scene, or None where the task does not apply to it."""
        ...


def swap(scene: Scene, old: Entity, new: Entity | None) -> Scene:
    """The scene with `old` replaced by `new`, or taken out."""
    kept = tuple(entity if entity != old else new for entity in scene.entities)
    return Scene(background=scene.background, entities=tuple(e for e in kept if e is not None))
