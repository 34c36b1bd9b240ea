"""Splits, and the compositions and wordings that only the benchmark shows."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from gvcot.data.scenes.expressions import HEADS, Expression
from gvcot.data.scenes.world import COLORS, SHAPES, Entity

_COLOR_INDEX = MappingProxyType({name: i for i, name in enumerate(COLORS)})


Split = Literal["train", "val", "test", "bench"]


@dataclass(frozen=True, slots=True)
class SplitSpec:
    """A stream of samples."""

    stream: int
    """Keeps the random streams of the splits apart."""

    length: int | None
    """Number of samples; None is unbounded."""

    held_out: bool
    """Whether all of its compositions and wordings are held out, or none."""


SPLIT_TABLE: MappingProxyType[Split, SplitSpec] = MappingProxyType(
    {
        "train": SplitSpec(stream=0, length=None, held_out=False),
        "val": SplitSpec(stream=1, length=512, held_out=False),
        "test": SplitSpec(stream=3, length=4096, held_out=False),
        "bench": SplitSpec(stream=2, length=590, held_out=True),
    }
)


def is_held_out(entity: Entity, expression: Expression) -> bool:
    """Whether this colour and shape, pointed at in this way, is kept for the benchmark.

    For every shape and every way of pointing (`HEADS`) exactly one colour is held out, so each colour, shape
    and way, and each pair of them, is still seen in training.
    """
    shape, head = SHAPES.index(entity.shape), HEADS.index(expression.head)
    return (_COLOR_INDEX[entity.color] + 4 * shape + 5 * head) % len(COLORS) == 0
