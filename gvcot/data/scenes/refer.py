"""Finding a referring expression for an entity: candidates are drawn until one means it beyond doubt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from gvcot.data.scenes.expressions import (
    CONE_CLEAR,
    ORDINALS,
    Expression,
    Extreme,
    Filter,
    Relation,
    Side,
    SizeRank,
    direction_between,
    points_at,
    without,
)
from gvcot.data.scenes.layout import pick, shuffled
from gvcot.data.scenes.world import COLOR_FACTS, SHAPE_FACTS, Entity, Scene
from gvcot.types import Referral

TRIES = 8
"""Candidates drawn per entity before another scene is drawn."""

LONE_ATTRIBUTE = 0.15
"""Share of descriptions kept although one attribute alone would do; the rest need all they say."""

_FIELDS = ("size", "color", "material", "state", "shape")
_SIDES: tuple[Side, ...] = ("left", "right", "top", "bottom")
_NAMES_OF_COLOR = MappingProxyType(
    {color: tuple(fact for fact, c in COLOR_FACTS.items() if c == color) for color in COLOR_FACTS.values()}
)
_NAMES_OF_SHAPE = MappingProxyType(
    {shape: tuple(fact for fact, s in SHAPE_FACTS.items() if s == shape) for shape in SHAPE_FACTS.values()}
)
# Attributes of the group that is ranked or searched; often few, so that the group has several members.
_GROUPS = (
    ("shape",),
    ("shape",),
    ("color",),
    ("color", "shape"),
    ("size", "shape"),
    ("material", "shape"),
    ("state", "shape"),
    (),
)


def describe(entity: Entity, fields: tuple[str, ...]) -> Filter:
    """The filter that states the given attributes of the entity."""
    values = {
        "size": entity.size,
        "color": entity.color,
        "material": entity.material,
        "state": entity.state,
        "shape": entity.shape,
    }
    return Filter(**{field: values[field] for field in fields})


def with_fact(base: Filter, entity: Entity, rng: np.random.Generator) -> Filter:
    """The filter with its colour, its shape or both replaced by something one has to know."""
    kind = rng.random()
    color_fact = pick(rng, _NAMES_OF_COLOR[entity.color]) if kind < 0.6 else None
    shape_fact = pick(rng, _NAMES_OF_SHAPE[entity.shape]) if kind > 0.45 else None
    return Filter(
        size=base.size,
        material=base.material,
        state=base.state,
        color=None if color_fact else base.color,
        shape=None if shape_fact else base.shape,
        color_fact=color_fact,
        shape_fact=shape_fact,
    )


def _stated(base: Filter) -> list[str]:
    fields = (*_FIELDS, "color_fact", "shape_fact")
    values = tuple(getattr(base, field) for field in fields)
    return [field for field, value in zip(fields, values, strict=True) if value is not None]


def _needs_all(base: Filter, scene: Scene) -> bool:
    """Whether leaving out any one attribute would make the description ambiguous."""
    return all(len(without(base, field).resolve(scene)) > 1 for field in _stated(base))


def _unique(scene: Scene, entity: Entity, rng: np.random.Generator) -> Filter:
    """A random description, shortened as far as it still means only the entity.

    A size is said of a named shape only: by eye, a large square and a large star are hard to compare.
    """
    base = describe(entity, _FIELDS)
    for field in shuffled(rng, _FIELDS):
        if field == "shape" and base.size is not None:
            continue
        shorter = without(base, field)
        if len(shorter.resolve(scene)) == 1:
            base = shorter
    return base


def _attributes(scene: Scene, target: int, rng: np.random.Generator) -> Expression | None:
    entity = scene.entities[target]
    if rng.random() < 0.6:
        return _size_rank(scene, target, rng)
    base = _unique(scene, entity, rng)
    lone = len(_stated(base)) < 2
    return None if lone and rng.random() > LONE_ATTRIBUTE else base


def _size_rank(scene: Scene, target: int, rng: np.random.Generator) -> Expression | None:
    # Among equal shapes, for the same reason as in `_unique`.
    base = describe(scene.entities[target], pick(rng, (("shape",), ("shape",), ("color", "shape"))))
    rank = 2 if rng.random() < 0.25 else 1
    if len(base.resolve(scene)) <= rank:
        return None
    return SizeRank("largest" if rng.random() < 0.5 else "smallest", rank, base)


def _extreme(base: Filter, scene: Scene, target: int, rng: np.random.Generator) -> Expression | None:
    if len(base.resolve(scene)) < 2:
        return None
    side = pick(rng, _SIDES)
    rank = 1 if base.knows else 1 + int(rng.random() * len(ORDINALS))
    # "The second of two" is the last one: ordinals are for groups of three and more.
    return Extreme(side, rank, base) if rank == 1 or len(base.resolve(scene)) >= 3 else None


def _relation(
    base: Filter, scene: Scene, target: int, hops: int, rng: np.random.Generator
) -> Relation | None:
    if len(base.resolve(scene)) < 2:
        return None
    found = int(rng.random() * len(scene.entities))
    if found == target:
        return None
    direction, offset = direction_between(scene.entities[found], scene.entities[target])
    if offset > CONE_CLEAR:
        return None
    if hops == 2:
        return Relation(direction, base, _unique(scene, scene.entities[found], rng))
    anchor = _relation(describe(scene.entities[found], pick(rng, _GROUPS)), scene, found, hops - 1, rng)
    return anchor and Relation(direction, base, anchor)


def _spatial(scene: Scene, target: int, hops: int, rng: np.random.Generator) -> Expression | None:
    base = describe(scene.entities[target], pick(rng, _GROUPS))
    if hops == 1:
        return _extreme(base, scene, target, rng)
    return _relation(base, scene, target, hops, rng)


def _property(scene: Scene, target: int, hops: int, rng: np.random.Generator) -> Expression | None:
    return _attributes(scene, target, rng)


def _knowledge(scene: Scene, target: int, hops: int, rng: np.random.Generator) -> Expression | None:
    entity = scene.entities[target]
    if hops == 1:
        if rng.random() < 0.75:
            base = with_fact(_unique(scene, entity, rng), entity, rng)
            return base if _needs_all(base, scene) or rng.random() < LONE_ATTRIBUTE else None
        return _extreme(with_fact(Filter(), entity, rng), scene, target, rng)
    relation = _relation(describe(entity, pick(rng, _GROUPS)), scene, target, hops, rng)
    return relation and _with_known_anchor(relation, scene, rng)


def _with_known_anchor(relation: Relation, scene: Scene, rng: np.random.Generator) -> Relation:
    """The relation with a fact in the description of its last anchor."""
    if isinstance(relation.anchor, Relation):
        return replace(relation, anchor=_with_known_anchor(relation.anchor, scene, rng))
    anchor = scene.entities[relation.anchor.resolve(scene)[0]]
    return replace(relation, anchor=with_fact(relation.anchor, anchor, rng))


_CANDIDATE: MappingProxyType[
    Referral, Callable[[Scene, int, int, np.random.Generator], Expression | None]
] = MappingProxyType({"spatial": _spatial, "property": _property, "knowledge": _knowledge})


def refer(
    scene: Scene, target: int, referral: Referral, hops: int, rng: np.random.Generator
) -> Expression | None:
    """An expression of the wanted kind that means the target beyond doubt, or None where none was found.

    Args:
        scene: what is there.
        target: id of what is to be meant.
        referral: in which way; only "spatial" and "knowledge" can take several hops.
        hops: things to be found.
        rng: candidates are drawn from it.
    """
    for _ in range(TRIES):
        candidate = _CANDIDATE[referral](scene, target, hops, rng)
        if candidate is not None and points_at(candidate, scene, target):
            return candidate
    return None


def full_name(scene: Scene, target: int) -> Filter | None:
    """All that can be said of the target by itself, or None where it fits something else as well."""
    found = describe(scene.entities[target], _FIELDS)
    return found if points_at(found, scene, target) else None


def name(scene: Scene, target: int, rng: np.random.Generator) -> Filter | None:
    """A description by attributes that fits the target alone, or None where things are too much alike."""
    found = _unique(scene, scene.entities[target], rng)
    return found if found.resolve(scene) == [target] else None
