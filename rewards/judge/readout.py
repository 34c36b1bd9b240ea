"""From a server's answer to a number, or to why there is none. Pure functions.

Under a grammar, log-probs come after its mask and sum to 1 over the answers it allows (measured on vLLM). The
expected score over them is what the average of many sampled answers would converge to: graded where a single
answer is not, at the price of one token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

Scale = Literal["score", "yes_no"]
"""What is asked for: a score, read as 0 to 10, or yes or no, read as 1 or 0."""

Readout = Literal["digits", "free_digits", "json"]
"""How an answer is asked for and read: by log-probs of one token under a grammar; by log-probs where the
server has no grammars; as JSON by schema."""

Kind = Literal[
    "parse",
    "refusal",
    "timeout",
    "rate_limit",
    "server",
    "connection",
    "truncated",
    "not_finite",
    "out_of_range",
    "bad_request",
]
"""Why a score is missing, in this order: an answer not of the expected form, refused by the model, nothing in
time, HTTP 429, HTTP 5xx, no connection or a broken one, cut off by the token limit, NaN or infinite, off the
scale, any other HTTP 4xx."""

KINDS: tuple[Kind, ...] = get_args(Kind)

TOP_LOGPROBS = 20
"""As many alternatives as the API gives at most."""

REASON_TOKENS = 512
"""Token limit of an answer in JSON."""

ROUNDING = 1e-2
"""How far probabilities may exceed 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """Why there is no score."""

    kind: Kind

    detail: str
    """What the server said."""

    retry_after_s: float = 0.0
    """Seconds that the server asks to wait."""


Reading = float | Missing


def answer_params(scale: Scale, readout: Readout) -> dict[str, Any]:
    """Arguments of a chat completion that make the server answer in the form that `read` reads."""
    if readout == "json":
        return {"response_format": _schema(scale), "max_tokens": REASON_TOKENS}
    params: dict[str, Any] = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
    if readout == "digits":
        regex = "[0-9]" if scale == "score" else "(yes|no)"
        params["extra_body"] = {"structured_outputs": {"regex": regex}}
    return params


def read(body: Any, scale: Scale, readout: Readout, min_mass: float) -> Reading:
    """The number in a chat completion.

    Args:
        body: the decoded JSON of the response.
        scale, readout: as the answer was asked for.
        min_mass: smallest probability of all acceptable tokens together.
    """
    try:
        choice = body["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        if message.get("refusal") or finish == "content_filter":
            return Missing(kind="refusal", detail=str(message.get("refusal") or finish))
        if readout == "json":
            if finish == "length":
                return Missing(kind="truncated", detail=f"cut off at {REASON_TOKENS} tokens")
            return json_value(message["content"], scale)
        top = [
            (str(t["token"]), float(t["logprob"])) for t in choice["logprobs"]["content"][0]["top_logprobs"]
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return Missing(
            kind="parse", detail=f"no answer of the expected form ({error!r}) in {str(body)[:300]}"
        )
    return expected_score(top, min_mass) if scale == "score" else yes_share(top, min_mass)


def expected_score(top: Iterable[tuple[str, float]], min_mass: float) -> Reading:
    """sum_d p(d) d * 10 / 9 over the digits d, with p renormalised over those that were seen.

    Args:
        top: (token, log-prob) of the first token's alternatives.
        min_mass: smallest sum of the digits' probabilities before renormalising.
    """
    mean = _mean(top, lambda token: float(token) if token in set("0123456789") else None, min_mass)
    return mean if isinstance(mean, Missing) else mean * 10 / 9


def yes_share(top: Iterable[tuple[str, float]], min_mass: float) -> Reading:
    """p(yes) / (p(yes) + p(no)); a token counts where it begins the word. Arguments as `expected_score`."""

    def value(token: str) -> float | None:
        answers = {"yes": 1.0, "no": 0.0}
        return next((v for word, v in answers.items() if token and word.startswith(token.lower())), None)

    return _mean(top, value, min_mass)


def json_value(text: str, scale: Scale) -> Reading:
    """The score (0 to 10) or answer (0 or 1) in an answer by schema."""
    try:
        answer = json.loads(text, strict=False)  # vLLM's grammar lets line breaks into the reason
        value = answer["score"] if scale == "score" else {"yes": 1, "no": 0}[answer["answer"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Missing(kind="parse", detail=f"not JSON of the expected form ({error!r}): {text!r:.300}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Missing(kind="parse", detail=f"the score is {value!r}, expected an integer")
    if isinstance(value, float) and not math.isfinite(value):
        return Missing(kind="not_finite", detail=f"the score is {value}")
    if not 0 <= value <= 10:
        return Missing(kind="out_of_range", detail=f"the score is {str(value)[:40]}, expected 0 to 10")
    if value != int(value):
        return Missing(kind="parse", detail=f"the score is {value}, expected an integer")
    return float(value)


def _mean(top: Iterable[tuple[str, float]], value: Callable[[str], float | None], min_mass: float) -> Reading:
    """Mean value of the tokens that have one, weighted by their probabilities."""
    mass, total = 0.0, 0.0
    for token, logprob in top:
        if math.isnan(logprob) or logprob == math.inf:
            return Missing(kind="not_finite", detail=f"log-prob {logprob} of {token!r}")
        if logprob > ROUNDING:
            return Missing(kind="out_of_range", detail=f"log-prob {logprob} of {token!r}, expected at most 0")
        number = value(token.strip())
        if number is not None:
            mass += math.exp(logprob)
            total += math.exp(logprob) * number
    if mass > 1 + ROUNDING:
        return Missing(kind="out_of_range", detail=f"probabilities sum to {mass:.3f}")
    if mass < min_mass:
        return Missing(kind="parse", detail=f"acceptable answers have a probability of only {mass:.3f}")
    return total / mass


def _schema(scale: Scale) -> dict[str, Any]:
    # An enumeration, because strict schemas of some servers know no ranges. The reason comes first: it is
    # written before the score is.
    name, values = ("score", list(range(11))) if scale == "score" else ("answer", ["yes", "no"])
    kind = "integer" if scale == "score" else "string"
    schema = {
        "type": "object",
        "properties": {"reason": {"type": "string"}, name: {"type": kind, "enum": values}},
        "required": ["reason", name],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
