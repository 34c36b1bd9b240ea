"""From a server's answer to a number, by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.judge.readout import KINDS, Missing, expected_score, json_value, read, yes_share


def logs(**probabilities: float) -> list[tuple[str, float]]:
    return [(token.lstrip("d"), math.log(p)) for token, p in probabilities.items()]


def kind(reading: float | Missing) -> str:
    assert isinstance(reading, Missing), f"expected a missing score, got {reading}"
    return reading.kind


def test_the_score_is_the_expected_digit_on_a_scale_to_ten():
    # 0.25 * 3 + 0.75 * 7 = 6, and 9 is the best digit
    assert expected_score(logs(d3=0.25, d7=0.75), 0.5) == pytest.approx(6 * 10 / 9)
    assert expected_score([("0", 0.0)], 0.5) == 0
    assert expected_score([(" 9", 0.0), ("8", -math.inf), ("7", -9999.0)], 0.5) == 10


def test_probabilities_are_renormalised_over_the_digits_that_were_seen():
    # of 0.8 on digits, a quarter is on 2 and the rest on 6: 0.25 * 2 + 0.75 * 6 = 5
    top = [*logs(d2=0.2, d6=0.6), ("The", math.log(0.1)), ("10", math.log(0.1))]
    assert expected_score(top, 0.5) == pytest.approx(5 * 10 / 9)
    assert kind(expected_score(top, 0.81)) == "parse"


def test_a_digit_split_over_several_tokens_counts_whole():
    assert expected_score([("4", math.log(0.3)), (" 4", math.log(0.3)), ("1", math.log(0.4))], 0.9) == (
        pytest.approx((0.6 * 4 + 0.4 * 1) * 10 / 9)
    )


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ([("7", math.nan)], "not_finite"),
        ([("7", math.inf)], "not_finite"),
        ([("x", math.nan), ("7", 0.0)], "not_finite"),
        ([("7", 0.5)], "out_of_range"),
        ([("x", 1e4), ("7", 0.0)], "out_of_range"),
        ([("7", 0.0), ("8", 0.0)], "out_of_range"),
        ([], "parse"),
        ([("seven", 0.0)], "parse"),
        ([("٧", 0.0)], "parse"),
    ],
)
def test_log_probs_that_cannot_be_are_missing(top: list[tuple[str, float]], expected: str):
    assert kind(expected_score(top, 0.5)) == expected


@given(st.lists(st.floats(1e-6, 1), min_size=10, max_size=10))
def test_any_distribution_gives_a_score_on_the_scale(weights: list[float]):
    total = sum(weights)
    score = expected_score([(str(d), math.log(w / total)) for d, w in enumerate(weights)], 0.99)
    by_hand = sum(d * w for d, w in enumerate(weights)) / total * 10 / 9
    assert score == pytest.approx(by_hand)
    assert 0 <= by_hand <= 10


def test_the_share_of_yes_counts_tokens_that_begin_the_word():
    top = [("Yes", math.log(0.4)), ("y", math.log(0.2)), ("no", math.log(0.2)), ("yellow", math.log(0.2))]
    assert yes_share(top, 0.7) == pytest.approx(0.6 / 0.8)
    assert kind(yes_share(top, 0.9)) == "parse"
    assert kind(yes_share([("", 0.0)], 0.5)) == "parse"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"reason": "fine", "score": 7}', 7.0),
        (
            '{"reason": "two\nlines\x0b", "score": 7}',
            7.0,
        ),  # as vLLM's grammar allows
        ('{"score": 0}', 0.0),
        ('{"score": 10.0}', 10.0),
        ('{"score": 7.5}', "parse"),
        ('{"score": "7"}', "parse"),
        ('{"score": true}', "parse"),
        ('{"score": null}', "parse"),
        ('{"rating": 7}', "parse"),
        ('{"score": 7', "parse"),
        ("7", "parse"),
        ("", "parse"),
        ('{"score": NaN}', "not_finite"),
        ('{"score": -Infinity}', "not_finite"),
        ('{"score": 11}', "out_of_range"),
        ('{"score": -1}', "out_of_range"),
        ('{"score": %s}' % ("7" * 400), "out_of_range"),  # beyond any float
        ('{"score": 1e400}', "not_finite"),
        ("[" * 100_000, "parse"),
    ],
)
def test_only_an_integer_from_0_to_10_is_a_score(text: str, expected: float | str):
    reading = json_value(text, "score")
    assert (kind(reading) if isinstance(expected, str) else reading) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"answer": "yes"}', 1.0),
        ('{"answer": "no"}', 0.0),
        ('{"answer": "maybe"}', "parse"),
        ("[]", "parse"),
    ],
)
def test_only_yes_and_no_are_answers(text: str, expected: float | str):
    reading = json_value(text, "yes_no")
    assert (kind(reading) if isinstance(expected, str) else reading) == expected


def body(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": '{"score": 7}'}, "finish_reason": "stop", **choice}]}


def test_a_refused_or_cut_answer_is_told_apart():
    refused = {"content": None, "refusal": "I won't"}
    assert read(body(), "score", "json", 0.5) == 7
    assert kind(read(body(message=refused), "score", "json", 0.5)) == "refusal"
    assert kind(read(body(message=refused), "score", "digits", 0.5)) == "refusal"
    assert kind(read(body(finish_reason="content_filter"), "score", "json", 0.5)) == "refusal"
    assert kind(read(body(finish_reason="length"), "score", "json", 0.5)) == "truncated"


def test_a_single_token_is_whole_although_the_limit_ended_it():
    logprobs = {"content": [{"top_logprobs": [{"token": "9", "logprob": 0.0}]}]}
    assert read(body(finish_reason="length", logprobs=logprobs), "score", "digits", 0.5) == 10


def test_a_log_prob_beyond_any_float_is_no_answer():
    top = [{"token": "7", "logprob": -(10**400)}]
    answer = {"choices": [{"message": {"content": "7"}, "logprobs": {"content": [{"top_logprobs": top}]}}]}
    assert kind(read(answer, "score", "digits", 0.5)) == "parse"


def test_an_answer_without_log_probs_has_no_expected_score():
    assert kind(read(body(), "score", "digits", 0.5)) == "parse"
    assert kind(read(body(logprobs=None), "yes_no", "free_digits", 0.5)) == "parse"


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "logprobs",
                    "top_logprobs",
                    "token",
                    "logprob",
                    "score",
                    "refusal",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(plain, st.sampled_from(["score", "yes_no"]), st.sampled_from(["digits", "json"]))
def test_no_body_of_whatever_form_raises(answer: Any, scale: Any, readout: Any):
    for whole in (
        answer,
        {"choices": [answer]},
        body(message=answer),
        body(message={"content": json.dumps(answer)}),
    ):
        reading = read(whole, scale, readout, 0.5)
        assert reading.kind in KINDS if isinstance(reading, Missing) else 0 <= reading <= 10
