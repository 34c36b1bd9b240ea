"""Splits are apart in compositions and in wordings, their groups have their sizes, and no sample of the
benchmark can be solved without reading."""

from __future__ import annotations

from collections import Counter
from math import sqrt

import numpy as np
import pytest
from scipy import ndimage

from gvcot.data import scenes
from gvcot.data.scenes.generator import Problem
from gvcot.data.scenes.render import render, silhouette
from gvcot.data.scenes.tasks import SHARES, TASK_TABLE

from .conftest import Problems
from .interpreter import Meaning, read

# The nine colours as a person would mix them; the rules below compare them with the wall.
RGB = {
    "red": (214, 40, 40),
    "orange": (245, 138, 20),
    "yellow": (250, 222, 50),
    "green": (36, 150, 60),
    "cyan": (50, 208, 224),
    "blue": (38, 74, 210),
    "white": (248, 248, 248),
    "brown": (116, 66, 30),
    "black": (32, 32, 36),
}
PAPER_SHARES = {
    "insertion": 8.7,
    "removal": 7.3,
    "change": 9.4,
    "background": 7.3,
    "extraction": 2.9,
    "human_attribute": 9.4,
    "color": 6.8,
    "material": 6.5,
    "state": 6.4,
    "style": 1.1,
    "motion": 5.1,
    "pose": 4.5,
    "size": 1.5,
    "movement": 3.6,
    "structure": 7.3,
    "repair": 3.9,
    "watermark": 2.3,
    "multi_attribute": 3.6,
    "multi_subject": 2.2,
}


def meaning_of(problem: Problem) -> Meaning:
    return read(problem.instruction, problem.edit.before)


def compositions(problems: list[Problem], *, of_first: bool = False) -> set[tuple[str, str, str]]:
    """(colour, shape, way of pointing) of what is referred to, as read from the words."""
    found = set()
    for problem in problems:
        references = meaning_of(problem).references
        for reference in references[:1] if of_first else references:
            found.add((reference.entity.color, reference.entity.shape, reference.head))
    return found


def test_bench_shows_only_compositions_that_training_never_shows(problems: Problems) -> None:
    train = compositions(problems("standard", "train", 4000))
    val = compositions(problems("standard", "val", 512))
    test = compositions(problems("standard", "test", 512))
    bench = compositions(problems("standard", "bench", 590), of_first=True)
    assert not (train | val | test) & bench
    heads = {head for *_, head in bench}
    assert len(heads) == 12
    # Yet every way and every pair of colour and shape is known from training.
    assert heads <= {head for *_, head in train}
    assert {c[:2] for c in bench} <= {c[:2] for c in train}


@pytest.mark.parametrize("level", ["easy", "hard"])
def test_other_levels_hold_out_the_same_compositions(problems: Problems, level: str) -> None:
    def of(split: scenes.Split, count: int) -> set[tuple[str, str, str]]:
        return {
            (r.entity.color, r.entity.shape, r.expression.head)
            for p in problems(level, split, count)
            for r in p.references[: 1 if split == "bench" else None]
        }

    train = compositions(problems("standard", "train", 4000)) | of("train", 300)
    assert not train & of("bench", 114)
    assert not of("train", 300) & compositions(problems("standard", "bench", 590), of_first=True)


def test_bench_says_everything_in_other_ways_than_training(problems: Problems) -> None:
    def skeletons(split: scenes.Split, count: int) -> set[str]:
        return {meaning_of(p).skeleton for p in problems("standard", split, count)}

    train, bench = skeletons("train", 4000), skeletons("bench", 590)
    assert not (train | skeletons("val", 512) | skeletons("test", 512)) & bench
    words = {word for text in train for word in text.split()}
    assert {word for text in bench for word in text.split()} <= words


def test_no_wording_of_the_benchmark_is_one_of_training() -> None:
    ways = [way for task in TASK_TABLE.values() for way in task.wordings]
    train = {w for way in ways for w in way.train}
    bench = {w for way in ways for w in way.bench}
    assert not train & bench
    assert all(way.train and way.bench for way in ways)
    words = {word for w in train for word in w.split()}
    assert {word for w in bench for word in w.split()} <= words


def test_groups_of_the_benchmark_are_equal(problems: Problems) -> None:
    bench = problems("standard", "bench", 590)
    assert scenes.length("bench") == 590
    assert sorted(Counter(p.referral for p in bench).values()) == [196, 197, 197]
    assert [p.task.name for p in bench[:57:3]] == list(scenes.TASKS)
    assert [p.task.name for p in bench] == [bench[i // 3 * 3].task.name for i in range(590)]
    assert [p.referral for p in bench[:6]] == ["spatial", "property", "knowledge"] * 2
    tasks = Counter(p.task.name for p in bench)
    assert max(tasks.values()) - min(tasks.values()) <= 3


def test_training_has_the_proportions_of_the_paper(problems: Problems) -> None:
    assert dict(SHARES) == PAPER_SHARES
    train = problems("standard", "train", 4000)
    found, total = Counter(p.task.name for p in train), sum(PAPER_SHARES.values())
    for task, share in PAPER_SHARES.items():
        p = share / total
        assert abs(found[task] - 4000 * p) < 4 * sqrt(4000 * p * (1 - p)), task
    for count in Counter(p.referral for p in train).values():
        assert abs(count - 4000 / 3) < 4 * sqrt(4000 * 2 / 9)


def test_chosen_tasks_keep_their_proportions() -> None:
    world = scenes.WorldConfig(level="easy", tasks=("size", "color"))
    found = Counter(s.task for s in scenes.samples("train", range(300), world=world))
    assert found.keys() == {"size", "color"}
    p = 1.5 / (1.5 + 6.8)
    assert abs(found["size"] - 300 * p) < 4 * sqrt(300 * p * (1 - p))


@pytest.mark.parametrize(("split", "count"), [("train", 1000), ("val", 512), ("test", 512), ("bench", 590)])
def test_something_else_could_always_be_meant(problems: Problems, split: scenes.Split, count: int) -> None:
    for problem in problems("standard", split, count):
        meaning = meaning_of(problem)
        assert len(meaning.rivals) > len(meaning.referents), problem.instruction


@pytest.fixture(scope="module")
def leads(problems: Problems) -> list[tuple[float, float]]:
    """By how much the referent beats all else, in area and in area times contrast, of every bench sample.

    Areas are those of silhouettes at eight times the size; contrasts are those to the mean colour of the wall
    right around a thing, as seen. Of a wall, all things before it are together one guess.
    """
    found = []
    for problem in problems("standard", "bench", 590):
        scene, meaning = problem.edit.before, meaning_of(problem)
        image_HW3 = render(scene, 64).astype(float)
        masks = [silhouette(entity, scene.side, 64) for entity in scene.entities]
        near_HW = np.asarray(ndimage.binary_dilation(np.logical_or.reduce(masks), np.ones((3, 3))), bool)
        is_meant = np.array([entity in meaning.referents for entity in scene.entities])
        if meaning.region == "wall":
            backdrop, (entity,) = scene.backdrop, meaning.referents
            axis = "x" if backdrop.seam == "upright" else "y"
            places = np.array([getattr(e, axis) > backdrop.cut * 16 for e in scene.entities])
            is_meant = places == (getattr(entity, axis) > backdrop.cut * 16)
        areas, saliences = [], []
        for entity, mask_HW in zip(scene.entities, masks, strict=True):
            grown_HW = np.asarray(ndimage.binary_dilation(mask_HW, np.ones((3, 3)), 3), bool)
            around_HW = grown_HW & ~near_HW
            contrast = np.linalg.norm(np.array(RGB[entity.color]) - image_HW3[around_HW].mean(0))
            areas.append(float(silhouette(entity, scene.side, 512).sum()))
            saliences.append(areas[-1] * float(contrast))
        found.append(
            tuple(float(max(np.array(v)[is_meant]) / max(np.array(v)[~is_meant])) for v in (areas, saliences))
        )
    return found


def test_the_largest_thing_is_never_what_the_benchmark_means(leads: list[tuple[float, float]]) -> None:
    assert not {i: round(lead, 3) for i, (lead, _) in enumerate(leads) if lead > 1}


def test_the_most_salient_thing_is_never_what_the_benchmark_means(leads: list[tuple[float, float]]) -> None:
    # Walls are lighter at the top, so contrasts differ by up to a tenth from those to the wall's own colour.
    assert not {i: round(lead, 3) for i, (_, lead) in enumerate(leads) if lead > 1.1}


def test_guessing_by_looks_is_worse_than_by_chance(leads: list[tuple[float, float]]) -> None:
    for rule in (0, 1):
        assert sum(lead[rule] >= 1 for lead in leads) < 0.02 * len(leads)
