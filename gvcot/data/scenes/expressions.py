"""Referring expressions: a small language for pointing at one entity, and its words.

Every expression can `resolve` to the ids (positions in `scene.entities`) of what it fits, can say whether it
is `clear` (no near-ties that a person could read the other way) and can put itself into words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, Protocol

from gvcot.data.scenes.world import COLOR_FACTS, SHAPE_FACTS, SIZES, Entity, Scene
from gvcot.types import Referral

MARGIN = 4.0
"""World units that ranked neighbours must be apart on their axis."""

CONE_CLEAR = 0.62
"""Sideways offset per distance up to which a direction is clear; 1 is the 45 degree cone's edge."""

ORDINALS = ("first", "second", "third")

Side = Literal["left", "right", "top", "bottom"]

SUPERLATIVES = MappingProxyType(
    {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "bottommost"}
)

RELATIONS = MappingProxyType({"left": "left of", "right": "right of", "up": "above", "down": "below"})


class Expression(Protocol):
    """Something that points at entities."""

    def resolve(self, scene: Scene) -> list[int]:
        """Ids of the entities it fits; exactly one for a well-formed reference."""
        ...

    def clear(self, scene: Scene) -> bool:
        """Whether no near-tie makes the reading doubtful."""
        ...

    def to_text(self) -> str:
        """With the article, e.g. "the second circle from the left"."""
        ...

    @property
    def referral(self) -> Referral:
        """Which kind of instruction it makes."""
        ...

    @property
    def knows(self) -> bool:
        """Whether a fact must be known to resolve it."""
        ...

    @property
    def hops(self) -> int:
        """Things to be found: itself, and those it is found by."""
        ...

    @property
    def head(self) -> str:
        """The outermost way of pointing, one of `HEADS`."""
        ...


HEADS = (*SUPERLATIVES.values(), *RELATIONS.values(), "largest", "smallest", "attributes", "fact")


@dataclass(frozen=True, slots=True)
class Filter:
    """Everything with the stated attributes; facts stand in for a colour or a shape."""

    size: str | None = None
    color: str | None = None
    material: str | None = None
    state: str | None = None
    shape: str | None = None
    color_fact: str | None = None
    """A key of COLOR_FACTS."""
    shape_fact: str | None = None
    """A key of SHAPE_FACTS."""

    def matches(self, entity: Entity) -> bool:
        """Whether the entity has all stated attributes."""
        return (
            (self.shape is None or self.shape == entity.shape)
            and (self.color is None or self.color == entity.color)
            and (self.size is None or self.size == entity.size)
            and (self.material is None or self.material == entity.material)
            and (self.state is None or self.state == entity.state)
            and (self.color_fact is None or COLOR_FACTS[self.color_fact] == entity.color)
            and (self.shape_fact is None or SHAPE_FACTS[self.shape_fact] == entity.shape)
        )

    def resolve(self, scene: Scene) -> list[int]:
        return [i for i, entity in enumerate(scene.entities) if self.matches(entity)]

    def clear(self, scene: Scene) -> bool:
        return True

    def nominal(self) -> str:
        """Without the article, e.g. "small red circle" or "thing with three sides"."""
        words = [self.size, self.color, self.material, self.state, self.shape or "thing", self.shape_fact]
        if self.color_fact is not None:
            words.append(f"that is the color of {self.color_fact}")
        return " ".join(word for word in words if word is not None)

    def to_text(self) -> str:
        return f"the {self.nominal()}"

    @property
    def hops(self) -> int:
        return 1

    @property
    def knows(self) -> bool:
        """Whether a fact must be known to resolve it."""
        return self.color_fact is not None or self.shape_fact is not None

    @property
    def referral(self) -> Referral:
        return "knowledge" if self.knows else "property"

    @property
    def head(self) -> str:
        return "fact" if self.knows else "attributes"


@dataclass(frozen=True, slots=True)
class Extreme:
    """The rank-th of those that fit `base`, counted from one side of the image."""

    side: Side
    rank: int
    """1 is the outermost."""
    base: Filter

    def _keys(self, scene: Scene) -> list[tuple[float, int]]:
        sign = 1.0 if self.side in ("left", "top") else -1.0
        horizontal = self.side in ("left", "right")
        entities = scene.entities
        ids = self.base.resolve(scene)
        return sorted((sign * (entities[i].x if horizontal else entities[i].y), i) for i in ids)

    def resolve(self, scene: Scene) -> list[int]:
        keys = self._keys(scene)
        return [keys[self.rank - 1][1]] if len(keys) >= self.rank else []

    def clear(self, scene: Scene) -> bool:
        keys = self._keys(scene)[: self.rank + 1]
        return all(far[0] - near[0] >= MARGIN for near, far in pairwise(keys))

    def to_text(self) -> str:
        if self.rank == 1:
            return f"the {SUPERLATIVES[self.side]} {self.base.nominal()}"
        return f"the {ORDINALS[self.rank - 1]} {self.base.nominal()} from the {self.side}"

    @property
    def hops(self) -> int:
        return 1

    @property
    def knows(self) -> bool:
        return self.base.knows

    @property
    def referral(self) -> Referral:
        return "knowledge" if self.base.knows else "spatial"

    @property
    def head(self) -> str:
        return "fact" if self.base.knows else SUPERLATIVES[self.side]


@dataclass(frozen=True, slots=True)
class SizeRank:
    """The rank-th largest or smallest of those that fit `base`."""

    extreme: Literal["largest", "smallest"]
    rank: int
    base: Filter

    def _keys(self, scene: Scene) -> list[tuple[int, int]]:
        sign = 1 if self.extreme == "smallest" else -1
        return sorted((sign * SIZES.index(scene.entities[i].size), i) for i in self.base.resolve(scene))

    def resolve(self, scene: Scene) -> list[int]:
        keys = self._keys(scene)
        return [keys[self.rank - 1][1]] if len(keys) >= self.rank else []

    def clear(self, scene: Scene) -> bool:
        keys = self._keys(scene)[: self.rank + 1]
        return all(near[0] != far[0] for near, far in pairwise(keys))

    def to_text(self) -> str:
        ordinal = "" if self.rank == 1 else f"{ORDINALS[self.rank - 1]} "
        return f"the {ordinal}{self.extreme} {self.base.nominal()}"

    @property
    def hops(self) -> int:
        return 1

    @property
    def knows(self) -> bool:
        return self.base.knows

    @property
    def referral(self) -> Referral:
        return "knowledge" if self.base.knows else "property"

    @property
    def head(self) -> str:
        return "fact" if self.base.knows else self.extreme


def direction_between(anchor: Entity, other: Entity) -> tuple[str, float]:
    """In which direction `other` lies from `anchor`, and how far off the axis it is.

    Returns:
        A key of DIRECTIONS, and sideways offset / distance along the axis, in [0, 1].
    """
    dx, dy = other.x - anchor.x, other.y - anchor.y
    if abs(dx) >= abs(dy):
        return ("left" if dx < 0 else "right"), abs(dy) / abs(dx)
    return ("up" if dy < 0 else "down"), abs(dx) / abs(dy)


@dataclass(frozen=True, slots=True)
class Relation:
    """Those that fit `base` and lie in `direction` (within a 45 degree cone) from the one `anchor`."""

    direction: str
    """A key of RELATIONS."""
    base: Filter
    anchor: Filter | Relation

    def _candidates(self, scene: Scene) -> list[tuple[int, str, float]]:
        anchors = self.anchor.resolve(scene)
        if len(anchors) != 1:
            return []
        anchor = scene.entities[anchors[0]]
        ids = [i for i in self.base.resolve(scene) if i != anchors[0]]
        return [(i, *direction_between(anchor, scene.entities[i])) for i in ids]

    def resolve(self, scene: Scene) -> list[int]:
        return [i for i, direction, _ in self._candidates(scene) if direction == self.direction]

    def clear(self, scene: Scene) -> bool:
        own = all(offset <= CONE_CLEAR for _, _, offset in self._candidates(scene))
        return own and self.anchor.clear(scene)

    def to_text(self) -> str:
        return self.join(" ")

    def join(self, link: str) -> str:
        """In words, with `link` between what is meant and where it is."""
        anchor = self.anchor.join(" that is ") if isinstance(self.anchor, Relation) else self.anchor.to_text()
        return f"the {self.base.nominal()}{link}{RELATIONS[self.direction]} {anchor}"

    @property
    def hops(self) -> int:
        return 1 + self.anchor.hops

    @property
    def knows(self) -> bool:
        return self.base.knows or self.anchor.knows

    @property
    def referral(self) -> Referral:
        return "knowledge" if self.knows else "spatial"

    @property
    def head(self) -> str:
        return "fact" if self.referral == "knowledge" else RELATIONS[self.direction]


def involved(expression: Expression, scene: Scene) -> set[int]:
    """Ids of what the expression means and of everything it is found by."""
    found = set(expression.resolve(scene))
    return found | involved(expression.anchor, scene) if isinstance(expression, Relation) else found


def points_at(expression: Expression, scene: Scene, target: int) -> bool:
    """Whether the expression means the target, only the target, and beyond doubt."""
    return expression.resolve(scene) == [target] and expression.clear(scene)


def without(base: Filter, field: str) -> Filter:
    """The filter with one attribute left out."""
    return replace(base, **{field: None})
