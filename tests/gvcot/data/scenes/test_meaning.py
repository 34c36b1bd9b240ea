"""Instructions mean what their samples show: `interpreter.py` reads them back from their words alone. What it
understands, drawn and painted, is the sample."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gvcot.data import scenes
from gvcot.data.scenes.generator import Problem, compose
from gvcot.data.scenes.render import render, silhouette
from gvcot.data.scenes.tasks import TASK_TABLE
from gvcot.data.scenes.world import Entity, Scene

from .conftest import Problems
from .interpreter import COLORS, STATES, Meaning, Unclear, find, read

LEVELS = ("easy", "standard", "hard")
ENERGY = {"easy": 1.0, "standard": 1.0, "hard": 0.35}
RADIUS = {"small": 4.5, "medium": 5.75, "large": 7.0, "huge": 11.5}

WORLDS = [
    *[("easy", "train", 300), ("easy", "val", 100), ("easy", "bench", 57)],
    *[("standard", "train", 2000), ("standard", "val", 300)],
    *[("standard", "test", 300), ("standard", "bench", 590)],
    *[("hard", "train", 400), ("hard", "val", 100), ("hard", "bench", 57)],
]


def understood(problem: Problem, level: str) -> Meaning:
    return read(problem.instruction, problem.edit.before, ENERGY[level])


def described(entity: Entity) -> str:
    usual = next(state for state, shapes in STATES.items() if entity.shape in shapes)
    words = (
        entity.size,
        entity.color,
        entity.material if entity.material != "plain" else "",
        entity.state if entity.state != usual else "",
        entity.shape,
    )
    return "a " + " ".join(word for word in words if word)


@pytest.mark.parametrize(("level", "split", "count"), WORLDS)
def test_words_alone_lead_to_what_is_marked_and_to_what_changes(
    problems: Problems, level: str, split: scenes.Split, count: int
) -> None:
    seen = set()
    for problem in problems(level, split, count):
        edit, meaning = problem.edit, understood(problem, level)
        words = problem.instruction
        seen.add(meaning.task)
        assert meaning.task == problem.task.name, words
        assert meaning.references[0].entity.x == problem.references[0].entity.x, words
        assert {found.kind for found in meaning.references} == {problem.referral}, words
        assert set(meaning.marked) == set(edit.marked), words
        assert meaning.region == edit.outline, words
        assert set(meaning.after.entities) == set(edit.after.entities), words
        assert (meaning.after.backdrop, meaning.after.grid) == (edit.after.backdrop, edit.after.grid), words
        assert set(meaning.rivals) == set(edit.possible), words
    assert split in ("val", "test") or seen == set(scenes.TASKS)


@pytest.mark.parametrize("level", LEVELS)
def test_captions_describe_what_is_marked(problems: Problems, level: str) -> None:
    for problem in problems(level, "train", 300):
        meaning = understood(problem, level)
        things = " and ".join(map(described, meaning.referents))
        prefix = {"background": "the wall behind ", "watermark": "the watermark on "}.get(meaning.task, "")
        caption = problem.edit.caption
        if meaning.task == "insertion":
            assert caption.startswith("the empty place ")
            assert caption.endswith(things)
        else:
            assert caption == prefix + things


@pytest.mark.parametrize("level", LEVELS)
def test_scene_captions_name_everything_and_its_place(level: str) -> None:
    world = scenes.WorldConfig(level=level)
    for index in range(20):
        sample, scene = scenes.generate(0, index, world=world), compose(0, index, world=world).edit.before
        named = re.findall(r"<x(\d+)> ?<y(\d+)> (.+?)(?= <x|$)", sample.scene_caption)
        left = list(scene.entities)
        for x, y, words in named:
            (found,) = [
                e
                for e in left
                if described(e) == f"a {words}"
                and np.hypot(e.x / scene.side * 32 - int(x) - 0.5, e.y / scene.side * 32 - int(y) - 0.5) < 1.5
            ]
            left.remove(found)
        assert not left


@pytest.mark.parametrize("level", LEVELS)
def test_pointers_mean_what_stands_at_their_place(level: str) -> None:
    world = scenes.WorldConfig(level=level)
    kinds, count = set(), 0
    for index in range(60):
        sample, scene = scenes.generate(0, index, world=world), compose(0, index, world=world).edit.before
        count += len(sample.pointers)
        for expression, place in sample.pointers:
            found = find(expression, scene)
            kinds.add(found.kind)
            x, y = (int(value / scene.side * 32) for value in (found.entity.x, found.entity.y))
            assert place == f"<x{x}> <y{y}>", expression
    assert kinds == {"spatial", "property", "knowledge"}
    assert count > 3 * 60


@pytest.mark.parametrize("level", LEVELS)
def test_full_names_say_everything_but_never_in_the_benchmark(level: str) -> None:
    world = scenes.WorldConfig(level=level, full_names=1.0)
    for index in range(40):
        problem = compose(0, index, world=world)
        for reference, found in zip(problem.references, understood(problem, level).references, strict=True):
            e, words = reference.entity, reference.expression.to_text().split()
            assert {e.size, e.color, e.material, e.shape} <= set(words)
            assert found.kind == problem.referral == "property"
    for index in range(0, 590, 59):
        named = compose(0, index, split="bench", world=world).instruction
        plain = compose(0, index, split="bench", world=scenes.WorldConfig(level=level)).instruction
        assert named == plain


@settings(max_examples=150)
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.sampled_from(LEVELS))
def test_every_reference_means_one_thing_beyond_doubt(seed: int, index: int, level: str) -> None:
    problem = compose(seed, index, world=scenes.WorldConfig(level=level))
    meaning = understood(problem, level)  # refuses near-ties and everything that means no thing, or several
    assert [e.x for e in meaning.referents] == [r.entity.x for r in problem.references]


@settings(max_examples=30)
@given(st.integers(0, 2**40), st.integers(0, 511), st.sampled_from(LEVELS), st.sampled_from(("val", "bench")))
def test_every_reference_of_other_streams_does_too(
    seed: int, index: int, level: str, split: scenes.Split
) -> None:
    problem = compose(seed, index, split=split, world=scenes.WorldConfig(level=level))
    meaning = understood(problem, level)
    assert [e.x for e in meaning.referents] == [r.entity.x for r in problem.references]


def wordings() -> list[tuple[str, str]]:
    return [
        (t.name, w) for t in TASK_TABLE.values() for ways in t.wordings for w in (*ways.train, *ways.bench)
    ]


@pytest.mark.parametrize(("task", "wording"), wordings())
def test_every_wording_can_be_read_in_one_way_only(task: str, wording: str) -> None:
    values = {
        "x": "the leftmost person left of the star that is above the thing that is the color of a lemon",
        "y": "the second circle from the right",
        "new": "small red star" if task == "insertion" else "red star",
        "color": "gray" if task == "background" else "red",
        "material": "shiny",
        "other": "larger",
        "tone": "darker",
        "where": "to the right" if task == "movement" else "right of",
        "side": "left",
    }
    empty = Scene(4, compose(0, 0).edit.before.backdrop, ())
    values["x"] = "the circle left of the star that is above the thing that is the color of a lemon"
    with pytest.raises(Unclear, match="means 0 things"):  # the form is clear, there is just nothing
        read(wording.format(**values), empty)
    values["x"] = "the leftmost person"
    with pytest.raises(Unclear, match="number 1 of 0"):
        read(wording.format(**values), empty)


def mask_of(meaning: Meaning, scene: Scene, size: int) -> NDArray[np.bool_]:
    """The region, from what was understood."""
    scale = size / (16 * scene.grid)
    mask_HW = np.zeros((size, size), bool)
    centers = np.arange(size) + 0.5
    if meaning.region == "wall":
        backdrop, (entity,) = scene.backdrop, meaning.marked
        place = entity.x if backdrop.seam == "upright" else entity.y
        same = (centers > backdrop.cut * 16 * scale) == (place > backdrop.cut * 16)
        mask_HW |= same[None, :] if backdrop.seam == "upright" else same[:, None]
        for other in scene.entities:
            mask_HW &= ~silhouette(other, scene.side, size)
        return mask_HW
    for entity in meaning.marked:
        x, y = entity.x * scale, entity.y * scale
        if meaning.region == "box":
            reach = (RADIUS[entity.size] + 1) * scale
            rows, columns = (slice(max(0, round(c - reach)), round(c + reach)) for c in (y, x))
            mask_HW[rows, columns] = True
        elif meaning.region == "stamp":
            wide, tall = np.abs(centers - x) <= 6.8 * scale, np.abs(centers - y) <= 2.7 * scale
            mask_HW |= tall[:, None] & wide[None, :]
        else:
            mask_HW |= silhouette(entity, scene.side, size)
    return mask_HW


def check_picture(level: str, split: scenes.Split, index: int, tasks: tuple[str, ...] | None = None) -> None:
    world = scenes.WorldConfig(level=level, tasks=tasks)
    sample = scenes.generate(0, index, split=split, world=world)
    scene = compose(0, index, split=split, world=world).edit.before
    size = len(sample.source_HW3)
    meaning = read(sample.instruction, scene, ENERGY[level])
    assert (render(scene, size) == sample.source_HW3).all(), sample.instruction
    assert (render(meaning.after, size) == sample.target_HW3).all(), sample.instruction
    assert (mask_of(meaning, scene, size) == sample.mask_HW).all(), sample.instruction
    assert len(sample.regions) == len(meaning.marked)
    assert sample.paint == ("box" if meaning.region == "box" else "mask")
    assert len(sample.things) == len(scene.entities)
    for thing, entity in zip(sample.things, scene.entities, strict=True):
        assert (thing.mask_HW == silhouette(entity, scene.side, size)).all()
    meant = meaning.referents if meaning.region in ("thing", "stamp") else ()
    assert [scene.entities[i] for i in sample.referents] == list(meant)


@pytest.mark.parametrize("task", scenes.TASKS)
def test_what_is_understood_is_what_is_painted_and_drawn(task: str) -> None:
    for level, count in (("easy", 3), ("standard", 12), ("hard", 4)):
        for index in range(count):
            check_picture(level, "train", index, (task,))


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_understood_in_other_words_is_painted_and_drawn_too(level: str) -> None:
    for index in range(1, 590, 10):
        check_picture(level, "bench", index)
    for index in range(20):
        check_picture(level, "val", index)


def test_colours_of_things_and_ways_of_pointing_all_occur(problems: Problems) -> None:
    readings = [understood(p, "standard") for p in problems("standard", "train", 2000)]
    heads = {found.head for meaning in readings for found in meaning.references}
    relations, extremes = {"left of", "right of", "above", "below"}, {"leftmost", "rightmost", "topmost"}
    assert heads == relations | extremes | {"bottommost", "largest", "smallest", "attributes", "fact"}
    assert {e.color for meaning in readings for e in meaning.referents} == set(COLORS)
    text = " ".join(p.instruction for p in problems("standard", "train", 2000))
    for phrase in ("second", "third", "from the top", "from the bottom", "from the left", "from the right"):
        assert phrase in text


def test_hard_references_take_up_to_three_things_to_be_found(problems: Problems) -> None:
    readings = [understood(p, "hard") for p in problems("hard", "train", 400)]
    assert {1 + len(found.anchors) for m in readings for found in m.references} == {1, 2, 3}


def test_idle_words_are_about_something_that_has_no_part_in_the_edit(problems: Problems) -> None:
    for problem in problems("hard", "train", 400):
        meaning = understood(problem, "hard")
        involved = {a for found in meaning.references for a in (found.entity, *found.anchors)}
        assert meaning.idle not in involved, problem.instruction


def test_idle_words_change_nothing() -> None:
    scene = compose(0, 0, world=scenes.WorldConfig(level="easy", tasks=("removal",))).edit.before
    first = scene.entities[0]
    name = described(first).replace("a ", "the ", 1)
    other = described(scene.entities[1]).replace("a ", "the ", 1)
    assert find(name, scene).entity == first
    alone = read(f"remove {name}", scene)
    for idle in (f"there is {other} . ", f"{other} is here . ", f"i see {other} . "):
        meaning = read(f"{idle}remove {name}", scene)
        assert meaning.after == alone.after
        assert meaning.idle == scene.entities[1]


def test_what_is_unclear_is_refused() -> None:
    scene = compose(0, 0).edit.before
    for words in ("remove it", "remove the", "remove the red red star", "paint the star", "the star is red"):
        with pytest.raises(Unclear):
            read(words, scene)


def test_most_referents_need_more_than_their_shape_or_their_colour(problems: Problems) -> None:
    alike = both = 0
    for problem in problems("standard", "train", 400):
        entities, meant = problem.edit.before.entities, understood(problem, "standard").referents[0]
        same_shape = sum(e.shape == meant.shape for e in entities) > 1
        same_color = sum(e.color == meant.color for e in entities) > 1
        alike += same_shape or same_color
        both += same_shape and same_color
    assert alike == 400
    assert both / 400 > 0.3
