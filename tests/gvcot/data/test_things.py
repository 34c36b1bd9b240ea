"""What a sample says of everything that stands in its source."""

from __future__ import annotations

import numpy as np
import pytest

from gvcot.data import scenes
from gvcot.data.scenes.generator import compose
from gvcot.data.scenes.render import silhouette


def of(task: str, num: int = 8, level: str = "standard") -> list[tuple[int, scenes.WorldConfig]]:
    return [(i, scenes.WorldConfig(level=level, tasks=(task,))) for i in range(num)]


@pytest.mark.parametrize("task", scenes.TASKS)
def test_things_are_the_silhouettes_of_all_that_stands_in_the_source(task: str) -> None:
    for index, world in of(task):
        sample, problem = (make(0, index, split="val", world=world) for make in (scenes.generate, compose))
        before = problem.edit.before
        assert len(sample.things) == len(before.entities)
        for thing, entity in zip(sample.things, before.entities, strict=True):
            assert np.array_equal(thing.mask_HW, silhouette(entity, before.side, 64))
            x0, y0, x1, y1 = thing.box
            assert thing.mask_HW[y0:y1, x0:x1].sum() == thing.mask_HW.sum()
            assert thing.mask_HW[y0:y1, x0:x1].any(0)[[0, -1]].all()
            assert thing.mask_HW[y0:y1, x0:x1].any(1)[[0, -1]].all()
        assert sum(thing.mask_HW.astype(int) for thing in sample.things).max() == 1  # they don't overlap


@pytest.mark.parametrize("task", scenes.TASKS)
def test_referents_are_what_the_words_name_where_that_is_what_they_mean(task: str) -> None:
    """Also in scenes that a task has spoiled: there everything is still in its place."""
    for index, world in of(task):
        sample, problem = (make(0, index, split="val", world=world) for make in (scenes.generate, compose))
        if task in ("insertion", "background"):
            assert sample.referents == ()
            continue
        places = [(e.x, e.y) for e in problem.edit.before.entities]
        assert [places[i] for i in sample.referents] == [(r.entity.x, r.entity.y) for r in problem.references]
        assert len(sample.referents) == (2 if task == "multi_subject" else 1)
        meant_HW = np.logical_or.reduce([sample.things[i].mask_HW for i in sample.referents])
        if task == "watermark":  # the region is the band over the thing
            assert (meant_HW & sample.mask_HW).any()
        else:
            assert np.array_equal(meant_HW, sample.mask_HW)


def test_things_scale_with_the_picture() -> None:
    small, large = (scenes.generate(0, 3, size=size) for size in (64, 128))
    assert small.referents == large.referents
    for a, b in zip(small.things, large.things, strict=True):
        assert b.mask_HW.sum() == pytest.approx(4 * a.mask_HW.sum(), rel=0.15)
