"""One judge behind an OpenAI-compatible server: probing it, asking it, asking again.

Legend: H W pixels.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
import openai
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_result,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from gvcot.errors import ConfigError, closest
from rewards.judge import prompts
from rewards.judge.cache import cache_key
from rewards.judge.config import EndpointConfig, JudgeConfig
from rewards.judge.prompts import Edit, Question
from rewards.judge.readout import KINDS, Kind, Missing, Reading, Readout, answer_params, read

T = TypeVar("T")
P = ParamSpec("P")

logger = logging.getLogger(__name__)

DOWN: frozenset[Kind] = frozenset({"timeout", "rate_limit", "server", "connection"})
"""Failures that say something of the server, not of what was asked."""

PASSING: frozenset[Kind] = frozenset(KINDS) - {"refusal", "bad_request"}
"""Failures that asking again may mend."""

UNSUITED: frozenset[Kind] = frozenset({"bad_request", "parse", "truncated", "not_finite", "out_of_range"})
"""Failures that say that a server can't be read like this."""

START_S = 120.0
"""Seconds that a server may take at start: the first answers of one that has just been started are slow."""

READOUTS: dict[str, tuple[Readout, ...]] = {
    "auto": ("digits", "free_digits", "json"),
    "digits": ("digits", "free_digits"),
    "json": ("json",),
}
"""Setting -> what is tried at start, in order."""

PROBE_EDIT = Edit(
    sample_id="probe",
    task="probe",
    instruction="make the square red",
    before_HW3=np.full((32, 32, 3), 200, dtype=np.uint8),
    after_HW3=np.full((32, 32, 3), (200, 0, 0), dtype=np.uint8),
    mask_HW=np.ones((32, 32), dtype=bool),
)
"""What a server is asked at start."""


class Endpoint:
    """Asks one server. Its coroutines run on one event loop; `until` is a time of that loop."""

    def __init__(self, config: EndpointConfig, judge: JudgeConfig) -> None:
        """Opens no connection yet.

        Raises:
            ConfigError: the environment variable of the API key isn't set.
        """
        self.config, self._judge = config, judge
        self.name = f"{config.model} at {config.base_url}"
        self._readout: Readout | None = None
        self._failure = Missing(kind="timeout", detail="no answer to the test question")
        self._rests_until = 0.0
        self._backoff_s = wait_random_exponential(multiplier=2 * judge.backoff_s)
        self._probing = asyncio.Lock()
        # The client wants a key where the server wants none.
        key = "none" if config.api_key_env is None else os.environ.get(config.api_key_env)
        if not key:
            raise ConfigError(
                f"judge {self.name}: the environment variable {config.api_key_env} is not set; export the "
                "API key under this name where rewards are computed, or set api_key_env to null"
            )
        self._client = openai.AsyncOpenAI(base_url=config.base_url, api_key=key, max_retries=0)

    @property
    def rests(self) -> bool:
        """Whether it failed all tries of a call less than `rest_s` ago."""
        return time.monotonic() < self._rests_until

    async def probe(self, until: float) -> Missing | None:
        """Find out whether the server can judge, and how its answers are read.

        Returns:
            Why it can't be asked for the moment; None where it can.

        Raises:
            ConfigError: it can't be asked like this at all.
        """
        return await _within(until, self._probe(until))

    async def ask(self, question: Question, call: int, until: float) -> Reading:
        """One answer, asked for several times where needed.

        Args:
            call: number of the call, which seeds the server's sampling.
        """
        if self._readout is None:
            try:
                failure = await self.probe(until)
            except ConfigError as error:  # at the start of a run it ends it; now it would lose it
                logger.warning("%s", error)
                failure = self._failure = Missing(kind="bad_request", detail=str(error))
                self._rests_until = time.monotonic() + self._judge.rest_s
            if failure is not None:
                return failure
        assert self._readout is not None
        return await self._retrying(
            until, PASSING, self._once, question, self._readout, call, self._judge.timeout_s
        )

    def key(self, question: Question, call: int) -> str | None:
        """Under what the answer is cached; None until it is known how it will be read."""
        if self._readout is None:
            return None
        return cache_key(
            images=question.images,
            model=self.config.model,
            system=prompts.SYSTEM,
            prompt=prompts.user_text(question, self._readout),
            params=answer_params(question.scale, self._readout),
            readout=self._readout,
            temperature=self._judge.temperature,
            call=call,
            **({"extra": self.config.extra} if self.config.extra else {}),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _probe(self, until: float) -> Missing | None:
        async with self._probing:
            # Many samples may wait here for one that has just probed.
            if self._readout is None and not self.rests:
                failure = await self._retrying(until, DOWN, self._look_up)
                failure = failure or await self._find_readout(until)
                if failure is not None:
                    self._failure = failure
            return self._failure if self._readout is None else None

    async def _look_up(self) -> Missing | None:
        """Check that the server has the model."""
        try:
            async with asyncio.timeout(START_S):
                response = await self._client.models.with_raw_response.list()
            served = [str(model["id"]) for model in json.loads(response.content)["data"]]
        except openai.NotFoundError:
            return None  # some gateways list no models; the test question will tell
        except (TimeoutError, openai.OpenAIError) as error:
            failure = _missing(error)
            if failure.kind == "bad_request":
                raise self._unusable(f"its list of models answered {failure.detail}") from error
            return failure
        except (ValueError, KeyError, TypeError) as error:
            raise self._unusable(f"its list of models can't be read ({error!r})") from error
        if self.config.model not in served:
            raise self._unusable(f"it does not serve this model; {closest(self.config.model, served)}")
        return None

    async def _find_readout(self, until: float) -> Missing | None:
        """Ask a small question in every way until one is answered."""
        question = prompts.question(prompts.case_of(PROBE_EDIT, self._judge), "sc", prompts.SC)
        said = []
        for readout in READOUTS[self.config.readout]:
            reading = await self._retrying(until, PASSING, self._once, question, readout, 0, START_S)
            if not isinstance(reading, Missing):
                self._readout = readout
                logger.info("judge %s: readout %s", self.name, readout)
                return None
            if reading.kind not in UNSUITED:
                return reading  # the next way would only hide it, and score otherwise
            said.append(f"{readout}: {reading.kind}, {reading.detail}")
        raise self._unusable(
            f"no answer to a test question with {len(question.images)} images could be read with readout "
            f"{self.config.readout!r} ({'; '.join(said)})"
        )

    async def _retrying(
        self,
        until: float,
        passing: frozenset[Kind],
        attempt: Callable[P, Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T | Missing:
        """The outcome, of several attempts while it is missing for a `passing` reason and time is left. An
        outcome that says that the server is down makes the endpoint rest."""
        left_s = until - asyncio.get_running_loop().time()
        retrying = AsyncRetrying(
            retry=retry_if_result(lambda outcome: isinstance(outcome, Missing) and outcome.kind in passing),
            stop=stop_after_attempt(self._judge.max_attempts) | stop_before_delay(max(0.0, left_s)),
            wait=lambda state: max(_outcome(state).retry_after_s, self._backoff_s(state)),
            retry_error_callback=_outcome,
        )
        outcome = await _within(until, retrying(attempt, *args, **kwargs))
        if isinstance(outcome, Missing) and outcome.kind in DOWN:
            self._rests_until = time.monotonic() + max(self._judge.rest_s, outcome.retry_after_s)
        return outcome

    async def _once(self, question: Question, readout: Readout, call: int, limit_s: float) -> Reading:
        """One request."""
        request = self._request(question, readout, call)
        try:
            async with asyncio.timeout(limit_s):
                response = await self._client.chat.completions.with_raw_response.create(**request)
            body = json.loads(response.content)
        except (TimeoutError, openai.OpenAIError) as error:
            return _missing(error)
        except ValueError as error:
            return Missing(kind="parse", detail=f"the response is not JSON: {error}")
        return read(body, question.scale, readout, self._judge.min_mass)

    def _request(self, question: Question, readout: Readout, call: int) -> dict[str, Any]:
        request = {
            "model": self.config.model,
            "messages": prompts.messages(question, readout),
            "temperature": self._judge.temperature,
            "seed": call,
            **answer_params(question.scale, readout),
        }
        if self.config.send_metadata:
            request["metadata"] = {
                "sample_id": question.sample_id,
                "aspect": question.aspect,
                "phase": "x_edit",
            }
        extra = self.config.extra
        request = {name: value for name, value in request.items() if name not in extra}
        added = {name: value for name, value in extra.items() if value is not None}
        return request | {"extra_body": request.get("extra_body", {}) | added}

    def _unusable(self, why: str) -> ConfigError:
        return ConfigError(
            f"judge {self.name}: {why}. Check base_url, model, api_key_env and readout, or try the "
            f"server with `curl {self.config.base_url.rstrip('/')}/models`"
        )


async def _within(until: float, outcome: Awaitable[T]) -> T | Missing:
    """The outcome, or a timeout when it isn't there in time."""
    try:
        async with asyncio.timeout_at(until):
            return await outcome
    except TimeoutError:
        return Missing(kind="timeout", detail="no answer before the sample's deadline")


def _outcome(state: RetryCallState) -> Any:
    assert state.outcome is not None
    return state.outcome.result()


def _missing(error: TimeoutError | openai.OpenAIError) -> Missing:
    """What a failed request says."""
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Missing(kind="timeout", detail="no answer in time")
    if not isinstance(error, openai.APIStatusError):
        return Missing(kind="connection", detail=repr(error.__cause__ or error))
    status = error.status_code
    kind: Kind = "bad_request"
    if status == 429:
        kind = "rate_limit"
    elif status == 408:
        kind = "timeout"
    elif status >= 500:
        kind = "server"
    wait_s = _retry_after_s(error.response.headers.get("retry-after", ""))
    return Missing(kind=kind, detail=f"HTTP {status}: {error.message[:300]}", retry_after_s=wait_s)


def _retry_after_s(value: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 where it can't be read."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
