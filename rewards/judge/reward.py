"""What a VLM thinks of the edit, as a reward.

Legend: B chains, H W pixels.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import torch

from gvcot.config import decode
from gvcot.data.images import to_uint8
from gvcot.errors import ConfigError, GvcotError
from gvcot.types import RewardResult
from rewards.base import Reward, RewardBatch, result
from rewards.judge.client import Judge, Verdict, open_judge
from rewards.judge.config import JudgeConfig
from rewards.judge.prompts import SCORED, Aspect, Case, Edit, asked_aspects, case_of
from rewards.judge.readout import KINDS

T = TypeVar("T")

logger = logging.getLogger(__name__)

TOP: dict[Aspect, float] = {"sc": 10.0, "pq": 10.0, "checklist": 1.0}
"""The best score of each aspect."""


class VLMJudge(Reward):
    """sqrt(SC * PQ) / 10 of a VLM's semantic consistency and perceptual quality, in [0, 1].

    The judge sees the source's codec round trip and the edit. Chains with identical images are asked once.
    Connections are opened in the process that scores, at `start` or the first `score`; a copy sent to another
    process opens its own.

    Missing where an answer is, after all retries. A checklist alone is for the tasks that have one. Parts:
    `sc` and `pq` from 0 to 10 and `checklist` from 0 to 1, where they were asked and answered; `cached`,
    `failed` and `fallback`, the shares of calls answered from the cache, by nobody and by another endpoint
    than the first; `missing_<kind>`, 1 where the score is missing for this reason (see
    `rewards.judge.readout.KINDS`).
    """

    name = "vlm_judge"
    requires = frozenset({"x_edit"})
    reaches = "x_edit"
    may_fail = True
    options = JudgeConfig

    def __init__(self, **options: Any) -> None:
        """`options`: the fields of `JudgeConfig`.

        Raises:
            ConfigError: an unknown, missing or wrong option.
        """
        try:
            self.config = decode(JudgeConfig, options)
        except ConfigError as error:
            raise ConfigError(f"reward {self.name}: {error}") from error
        if self.config.aspect == "checklist":
            self.tasks = frozenset(self.config.checklist)
        if self.config.mask_context:
            self.requires = self.requires | {"mask"}
        self._open: _JudgeThread | None = None
        self._inherited: list[_JudgeThread] = []

    def start(self) -> None:
        """Open connections and cache, and ask every endpoint a small question, unless that is done.

        Raises:
            ConfigError: an endpoint, its key or the cache can't be used like this.
            RewardError: no endpoint is up.
        """
        self._running()

    def score(self, batch: RewardBatch) -> RewardResult:
        cases = self._cases(batch)
        unique = list(dict.fromkeys(cases))
        verdicts = dict(zip(unique, self._running().judge_all(unique), strict=True))
        _log_missing(list(verdicts.values()))
        device = batch.source_rt_B3HW.device
        raw_B = torch.tensor([self._raw(verdicts[case]) for case in cases], device=device)
        parts = [self._parts(verdicts[case]) for case in cases]
        parts_B = {
            name: torch.tensor([part[name] for part in parts], device=device)
            for name in self._parts(Verdict())
        }
        return result(raw_B, raw_B.isfinite(), **parts_B)

    def close(self) -> None:
        """Close connections and cache; the next `score` opens them again."""
        self._disown()
        if self._open is not None:
            self._open.close()
        self._open = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None, "_inherited": []}

    def _running(self) -> _JudgeThread:
        self._disown()
        if self._open is None:
            self._open = _JudgeThread(self.config)
        return self._open

    def _disown(self) -> None:
        """A fork has neither its parent's thread nor the right to close its database: it only keeps them."""
        if self._open is not None and self._open.pid != os.getpid():
            self._inherited.append(self._open)
            self._open = None

    def _cases(self, batch: RewardBatch) -> list[Case]:
        before_BHW3, after_BHW3 = to_uint8(batch.source_rt_B3HW), to_uint8(batch.image("x_edit"))
        return [
            case_of(
                Edit(
                    sample_id=sample.sample_id,
                    task=sample.task,
                    instruction=sample.instruction,
                    before_HW3=before_HW3,
                    after_HW3=after_HW3,
                    mask_HW=sample.mask_HW,
                ),
                self.config,
            )
            for sample, before_HW3, after_HW3 in zip(batch.samples, before_BHW3, after_BHW3, strict=True)
        ]

    def _raw(self, verdict: Verdict) -> float:
        """Geometric mean of the scored aspects, as shares of their scales; NaN where one is missing."""
        shares = [verdict.scores.get(aspect, math.nan) / TOP[aspect] for aspect in SCORED[self.config.aspect]]
        return math.prod(shares) ** (1 / len(shares))

    def _parts(self, verdict: Verdict) -> dict[str, float]:
        why = verdict.missing.kind if verdict.missing and math.isnan(self._raw(verdict)) else None
        num_calls = max(verdict.num_calls, 1)
        return {
            **{aspect: verdict.scores.get(aspect, math.nan) for aspect in asked_aspects(self.config)},
            "cached": verdict.num_cached / num_calls,
            "failed": verdict.num_failed / num_calls,
            "fallback": verdict.num_fallback / num_calls,
            **{f"missing_{kind}": float(kind == why) for kind in KINDS},
        }


class _JudgeThread:
    """A judge on an event loop in a thread of its own, so that connections outlive a call of `score`."""

    def __init__(self, config: JudgeConfig) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vlm-judge", daemon=True)
        self._thread.start()
        try:
            self._judge: Judge = self._run(open_judge(config))
        except GvcotError:
            self._stop()
            raise

    def judge_all(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case, all asked at once."""

        async def judge_all() -> list[Verdict]:
            return await asyncio.gather(*(self._judge.judge(case) for case in cases))

        return self._run(judge_all())

    def close(self) -> None:
        """Close connections and cache, and end the thread."""
        self._run(self._judge.close())
        self._stop()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()  # no more requests for what nobody waits for
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _log_missing(verdicts: Sequence[Verdict]) -> None:
    """One line that says why scores are missing."""
    missing = [verdict.missing for verdict in verdicts if verdict.missing is not None]
    if missing:
        counts = ", ".join(f"{kind}: {num}" for kind, num in Counter(m.kind for m in missing).items())
        logger.warning(
            "vlm_judge: %d of %d edits not judged (%s); first: %s",
            len(missing),
            len(verdicts),
            counts,
            missing[0].detail,
        )
