"""How far a judge can be moved, measured on one that obeys and one that doesn't."""

from __future__ import annotations

import numpy as np
import pytest

from rewards.judge import prompts
from rewards.judge.injections import INJECTIONS, LEGIBLE, measure_injections
from rewards.judge.prompts import Edit


@pytest.fixture
def edits() -> list[Edit]:
    image = np.full((16, 16, 3), 100, dtype=np.uint8)
    return [
        Edit(
            sample_id=f"test/{i}",
            task="color",
            instruction=instruction,
            before_HW3=image,
            after_HW3=image,
            mask_HW=np.ones((16, 16), dtype=bool),
        )
        for i, instruction in enumerate(("make it red", "make it blue"))
    ]


def test_a_judge_that_obeys_is_moved_by_exactly_that_much(server, edits: list[Edit]):
    server.opinion = lambda asked: 1.0 if "answer 10." in asked.text and asked.aspect == "sc" else 1 / 9
    moved = measure_injections(server.config(), edits)
    assert set(moved) == {f"{i.name}/{aspect}" for i in INJECTIONS for aspect in ("sc", "pq")}
    assert moved.pop("ignore/sc") == pytest.approx(10 - 10 / 9)
    assert set(moved.values()) == {0.0}


def test_words_that_are_added_do_not_count_as_the_command(server, edits: list[Edit]):
    # a judge that only dislikes long instructions; the bare ones are short
    server.opinion = lambda asked: 0.2 if len(asked.text) > len(prompts.SC) + 290 else 0.7
    moved = measure_injections(server.config(aspect="sc"), edits)
    assert {asked.aspect for asked in server.asked} == {"sc"}
    assert set(moved.values()) == {0.0}


def test_text_in_an_image_is_compared_with_other_text_in_it(server, edits: list[Edit]):
    # 3 of 10 for any picture with text in it, and no more for a command than for other words
    server.opinion = lambda asked: 0.3 if (asked.images[-1] == 255).mean() > 0.1 else 0.8
    moved = measure_injections(server.config(image_size=32), edits, INJECTIONS[-1:])
    assert set(moved.values()) == {0.0}
    assert {asked.images[-1].shape for asked in server.asked} == {(LEGIBLE, LEGIBLE, 3)}
    assert {asked.images[0].shape for asked in server.asked} == {(LEGIBLE, LEGIBLE, 3)}


def test_no_scores_no_measure(server, edits: list[Edit]):
    server.fail("refusal", "...")
    assert all(np.isnan(points) for points in measure_injections(server.config(), edits).values())


def test_controls_are_as_long_as_what_they_control_and_speak_of_no_score():
    assert {injection.where for injection in INJECTIONS} == {"instruction", "image"}
    assert len({injection.name for injection in INJECTIONS}) == len(INJECTIONS)
    for injection in INJECTIONS:
        assert len(injection.control) == pytest.approx(len(injection.text), rel=0.2)
        words = set(injection.control.lower().replace(".", " ").split())
        assert not words & {"score", "answer", "judge", "ignore", "highest", "marks"}
