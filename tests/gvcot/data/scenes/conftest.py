"""Problems of Scenes, composed once for all tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gvcot.data import scenes
from gvcot.data.scenes.generator import Problem, compose

Problems = Callable[[str, scenes.Split, int], list[Problem]]


@pytest.fixture(scope="session")
def problems() -> Problems:
    """problems(level, split, count): the first ones of a split's stream."""
    known: dict[tuple[str, str], list[Problem]] = {}

    def composed(level: str, split: scenes.Split, count: int) -> list[Problem]:
        world, found = scenes.WorldConfig(level=level), known.setdefault((level, split), [])
        found += [compose(0, i, split=split, world=world) for i in range(len(found), count)]
        return found[:count]

    return composed
