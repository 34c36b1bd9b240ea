"""Instructions mean what their samples show: they are read back from their words alone, by an interpreter
written from the grammar in docs/scenes.md and from common knowledge, without the world's tables."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest

from gvcot.data import scenes
from gvcot.data.scenes.generator import compose

COLOR = "red|orange|yellow|green|cyan|blue|white|brown|black"
SHAPE = "circle|square|triangle|diamond|cross|star"
NEW = rf"(small|medium|large) ({COLOR})(?: (striped|shiny))? ({SHAPE})"
STEPS = {"up": (0, -16), "down": (0, 16), "left": (-16, 0), "right": (16, 0)}
WHERE = {"above": "up", "below": "down", "left of": "left", "right of": "right"}
RANK = {"second": 2, "third": 3}
SIZE = {"small": 0, "medium": 1, "large": 2}
TEMPLATES = {
    "color": [
        rf"make (?P<x>.*) (?P<to>{COLOR})",
        rf"change the color of (?P<x>.*) to (?P<to>{COLOR})",
        rf"paint (?P<x>.*) (?P<to>{COLOR})",
    ],
    "removal": [r"(remove|delete|take away) (?P<x>.*)"],
    "insertion": [rf"(add|put|insert) a (?P<to>{NEW}) (?P<where>left of|right of|above|below) (?P<x>.*)"],
    "size": [
        r"make (?P<x>.*) (?P<to>larger|smaller)",
        r"(?P<to>enlarge|shrink) (?P<x>.*)",
        r"scale (?P<to>up|down) (?P<x>.*)",
    ],
    "movement": [r"(move|shift|slide) (?P<x>.*?)(?: to the)? (?P<to>up|down|left|right)"],
}
KNOWN_SHAPE = {
    "with no corners": "circle",
    "that could roll like a wheel": "circle",
    "with four right angles": "square",
    "like a chess board": "square",
    "with three sides": "triangle",
    "with three corners": "triangle",
    "like a kite": "diamond",
    "like a plus sign": "cross",
    "with four arms": "cross",
    "with five points": "star",
    "seen in the night sky": "star",
}
KNOWN_COLOR = {
    "red": ["a tomato", "a strawberry"],
    "orange": ["a carrot", "a pumpkin"],
    "yellow": ["a banana", "a lemon"],
    "green": ["grass", "a frog"],
    "cyan": ["a turquoise stone", "a swimming pool"],
    "blue": ["the deep ocean", "a blueberry"],
    "white": ["snow", "milk"],
    "brown": ["chocolate", "coffee"],
    "black": ["coal", "a raven"],
}


def nominal(text, entities):
    """Entities that fit a noun phrase without article, e.g. "small red shape with three sides"."""
    match = re.fullmatch(
        rf"(?:(small|medium|large) ?)?(?:({COLOR}) ?)?(?:(plain|striped|shiny) ?)?({SHAPE}|shape)"
        r"(?: (?!that is)(.*?))?(?: that is the color of (.*))?",
        text,
    )
    assert match, text
    size, color, material, shape, shape_fact, color_fact = match.groups()
    assert shape_fact is None or shape == "shape"
    shape = KNOWN_SHAPE[shape_fact] if shape_fact else shape
    if color_fact:
        (color,) = [name for name, things in KNOWN_COLOR.items() if color_fact in things]
    return [
        e
        for e in entities
        if size in (None, e.size)
        and color in (None, e.color)
        and material in (None, e.material)
        and shape in ("shape", e.shape)
    ]


def only(entities):
    assert len(entities) == 1, entities
    return entities[0]


def direction(a, b):
    angle = math.degrees(math.atan2(a.y - b.y, b.x - a.x)) % 360
    return ("right", "up", "left", "down")[int((angle + 45) % 360 // 90)]


def meaning(text, entities):
    """The one entity that a reference means."""
    if match := re.fullmatch(r"the (.*?) (left of|right of|above|below) (the .*)", text):
        anchor = meaning(match[3], entities)
        others = [e for e in nominal(match[1], entities) if e != anchor]
        return only([e for e in others if direction(anchor, e) == WHERE[match[2]]])
    if match := re.fullmatch(r"the (second|third) (.*) from the (left|right|top|bottom)", text):
        return ranked(nominal(match[2], entities), match[3], RANK[match[1]])
    if match := re.fullmatch(r"the (left|right|top|bottom)most (.*)", text):
        return ranked(nominal(match[2], entities), match[1], 1)
    if match := re.fullmatch(r"the (?:(second|third) )?(largest|smallest) (.*)", text):
        group = sorted(nominal(match[3], entities), key=lambda e: SIZE[e.size], reverse=match[2] == "largest")
        rank = RANK.get(match[1], 1)
        chosen = group[rank - 1]
        return only([e for e in group if e.size == chosen.size])
    return only(nominal(text.removeprefix("the "), entities))


def ranked(group, side, rank):
    at = {"left": lambda e: e.x, "right": lambda e: -e.x, "top": lambda e: e.y, "bottom": lambda e: -e.y}[
        side
    ]
    group = sorted(group, key=at)
    gaps = [at(b) - at(a) for a, b in pairwise(group)]
    assert all(gap >= 4 for gap in gaps[:rank]), "a near-tie"
    return group[rank - 1]


def read(instruction, task):
    matches = [m for t in TEMPLATES[task] if (m := re.fullmatch(t, instruction))]
    assert matches, instruction
    return matches[0]


@pytest.mark.parametrize(("split", "count"), [("train", 400), ("val", 100), ("bench", 590)])
def test_words_alone_lead_to_the_marked_entity_and_to_the_shown_change(split, count):
    for index in range(count):
        problem = compose(0, index, split=split)
        edit, task = problem.edit, problem.task.name
        before, after = edit.before.entities, edit.after.entities
        parts = read(edit.instruction, task).groupdict()
        meant = meaning(parts["x"], before)
        gone, come = set(before) - set(after), set(after) - set(before)
        if task == "insertion":
            new = only(list(come))
            dx, dy = STEPS[WHERE[parts["where"]]]
            assert not gone
            assert edit.marked == (new,)
            assert (new.x, new.y) == pytest.approx((meant.x + dx, meant.y + dy))
            said = re.fullmatch(NEW, parts["to"]).groups(default="plain")
            assert said == (new.size, new.color, new.material, new.shape)
            continue
        assert edit.marked == (meant,), edit.instruction
        assert gone == {meant}
        if task == "removal":
            assert not come
            continue
        new = only(list(come))
        changed = {
            f
            for f in ("shape", "color", "material", "size", "x", "y")
            if getattr(meant, f) != getattr(new, f)
        }
        if task == "color":
            assert changed == {"color"}
            assert new.color == parts["to"]
        elif task == "size":
            grows = parts["to"] in ("larger", "enlarge", "up")
            assert changed == {"size"}
            assert SIZE[new.size] - SIZE[meant.size] == (1 if grows else -1)
        else:
            assert (new.x - meant.x, new.y - meant.y) == pytest.approx(STEPS[parts["to"]])
            assert changed == {"x" if parts["to"] in ("left", "right") else "y"}


def test_kind_of_referral_shows_in_the_words():
    facts = [*KNOWN_SHAPE, "that is the color of"]
    places = ["left", "right", "top", "bottom", "above", "below"]
    for index in range(300):
        problem = compose(1, index)
        x = read(problem.edit.instruction, problem.task.name)["x"]
        knows = any(fact in x for fact in facts)
        is_spatial = any(place in x for place in places) and not knows
        expected = "knowledge" if knows else "spatial" if is_spatial else "property"
        assert problem.referral == expected, problem.edit.instruction


def test_mask_covers_what_the_words_mean():
    for index in range(100):
        sample, problem = scenes.generate(0, index), compose(0, index)
        rows, columns = sample.mask_HW.nonzero()
        marked = only(list(problem.edit.marked))
        assert abs(columns.mean() + 0.5 - marked.x) < 2
        assert abs(rows.mean() + 0.5 - marked.y) < 2


def test_most_referents_need_more_than_their_shape_or_their_colour():
    alike = both = 0
    for index in range(300):
        edit = compose(2, index, tasks=["removal"]).edit
        meant = edit.marked[0]
        same_shape = sum(e.shape == meant.shape for e in edit.before.entities) > 1
        same_color = sum(e.color == meant.color for e in edit.before.entities) > 1
        alike += same_shape or same_color
        both += same_shape and same_color
    assert alike / 300 > 0.9
    assert both / 300 > 0.4
