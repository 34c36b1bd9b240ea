"""Judging edits: several questions, several endpoints, one deadline, nothing asked twice."""

from __future__ import annotations

import asyncio
import logging
import statistics
from dataclasses import dataclass, field

from gvcot.errors import GvcotError, RewardError
from rewards.judge.cache import ScoreCache
from rewards.judge.config import JudgeConfig
from rewards.judge.endpoint import START_S, Endpoint
from rewards.judge.prompts import Aspect, Case, Question, questions
from rewards.judge.readout import Missing, Reading

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Verdict:
    """What was said of one case."""

    scores: dict[Aspect, float] = field(default_factory=dict)
    """sc and pq from 0 to 10, checklist (the share of yes) from 0 to 1; only what was asked and answered."""

    missing: Missing | None = None
    """Why an aspect has no score; None where all have one."""

    num_calls: int = 0
    """Calls that were needed."""

    num_cached: int = 0
    """Of these, answered from the cache."""

    num_failed: int = 0
    """Of these, answered by no endpoint."""

    num_fallback: int = 0
    """Of these, answered by another endpoint than the first."""


class Judge:
    """Asks VLMs about edits. Its coroutines run on one event loop."""

    def __init__(self, config: JudgeConfig) -> None:
        """Opens the cache.

        Raises:
            ConfigError: the cache can't be opened, or the variable of an API key isn't set.
        """
        self._config = config
        self._endpoints = [Endpoint(endpoint, config) for endpoint in config.endpoints]
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self.cache = ScoreCache(config.cache)

    async def start(self) -> None:
        """Ask every endpoint for its models and one small question.

        Raises:
            ConfigError: an endpoint can't be asked like this at all (key, model, readout).
            RewardError: no endpoint is up; nothing is lost, the run can be resumed later.
        """
        down: dict[str, Missing] = {}
        for endpoint in self._endpoints:
            failure = await endpoint.probe(asyncio.get_running_loop().time() + START_S)
            if failure is not None:
                down[endpoint.name] = failure
                logger.warning("judge %s is down: %s, %s", endpoint.name, failure.kind, failure.detail)
        if len(down) == len(self._endpoints):
            said = "; ".join(f"{name}: {failure.kind}, {failure.detail}" for name, failure in down.items())
            raise RewardError(
                f"no judge can be asked: {said}. Start the server or wait until it is up, check "
                "base_url, and start the run again: it resumes where it stopped"
            )

    async def judge(self, case: Case) -> Verdict:
        """Ask everything about a case. A failure is a missing score, never an error."""
        async with self._slots:
            verdict = Verdict()
            until = asyncio.get_running_loop().time() + self._config.deadline_s
            for aspect, asked in questions(case, self._config).items():
                answers = [await self._average(question, verdict, until) for question in asked]
                scores = [answer for answer in answers if not isinstance(answer, Missing)]
                if len(scores) < len(answers):
                    verdict.missing = next(answer for answer in answers if isinstance(answer, Missing))
                    break
                verdict.scores[aspect] = statistics.fmean(scores)
            return verdict

    async def close(self) -> None:
        """Close connections and cache."""
        for endpoint in self._endpoints:
            await endpoint.close()
        self.cache.close()

    async def _average(self, question: Question, verdict: Verdict, until: float) -> Reading:
        """Mean over the calls that were answered; missing where none was."""
        readings = [await self._call(question, call, verdict, until) for call in range(self._config.calls)]
        scores = [reading for reading in readings if not isinstance(reading, Missing)]
        return statistics.fmean(scores) if scores else readings[0]

    async def _call(self, question: Question, call: int, verdict: Verdict, until: float) -> Reading:
        verdict.num_calls += 1
        keys = [endpoint.key(question, call) for endpoint in self._endpoints]
        cached = self.cache.get([key for key in keys if key is not None])
        if cached is not None:
            verdict.num_cached += 1
            return cached
        reading: Reading = Missing(kind="connection", detail="no endpoint")
        endpoints = sorted(self._endpoints, key=lambda endpoint: endpoint.rests)
        for i, endpoint in enumerate(endpoints):
            now = asyncio.get_running_loop().time()
            # Each may use an equal share of the time left, so a silent one leaves some to the next.
            share = now + (until - now) / (len(endpoints) - i)
            reading = await endpoint.ask(question, call, share)
            if not isinstance(reading, Missing):
                key = endpoint.key(question, call)
                assert key is not None, "an endpoint that answered has been probed"
                self.cache.put(key, reading)
                verdict.num_fallback += endpoint is not self._endpoints[0]
                return reading
            if reading.kind == "refusal":
                break  # another judge for what one judge refuses would be another scale for it
        verdict.num_failed += 1
        return reading


async def open_judge(config: JudgeConfig) -> Judge:
    """A judge that has been started, for the running event loop and its thread. Raises as `Judge` does."""
    judge = Judge(config)
    try:
        await judge.start()
    except GvcotError:
        await judge.close()
        raise
    return judge
