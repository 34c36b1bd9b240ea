"""Rolling out and scoring the prompts of one step.

`Inline` lets the policy workers score what they drew. `Overlapped` gives the chains to reward workers of
their own: prompts are drawn in chunks, and a chunk is scored while the next one is drawn. The policy doesn't
move meanwhile, so both give the same chains and scores.

Legend: P prompts per step, B = P * G chains.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from tensordict import TensorDict

from gvcot.chain import Chain
from gvcot.model.pretrained import load_pretrained_codec, load_tokenizer
from rewards.registry import build_rewards
from rl.cluster import ActorPool, WorkerGroup, enter_folder
from rl.config import RLConfig
from rl.scoring import Scorer, TrainingPrompts, provides


class Collected(NamedTuple):
    """What came of one step's prompts."""

    chains: TensorDict
    """B rows of the policy workers' `rollout`."""

    scores: TensorDict
    """B rows of `rl.scoring.Scorer`."""

    metrics: dict[str, float]
    """"time/rollout" and "time/score", seconds; "reward_worker/..." where there are some."""


class Collector(Protocol):
    """One way to roll out and score."""

    def __call__(self, prompts: TensorDict) -> Collected:
        """P rows of prompts -> B chains with their scores."""
        ...


class Inline:
    """The policy workers score their own chains."""

    def __init__(self, policy: WorkerGroup) -> None:
        self._policy = policy

    def __call__(self, prompts: TensorDict) -> Collected:
        """See `Collector`."""
        start = time.monotonic()
        chains = self._policy.rollout(prompts)
        drawn = time.monotonic()
        scores = self._policy.score(chains)
        scored = time.monotonic()
        metrics = {
            "time/rollout": drawn - start,
            "time/score": scored - drawn,
            "time/chains_scored_per_second": len(scores) / (scored - drawn),
        }
        return Collected(chains, scores, metrics)


class Overlapped:
    """Reward workers score each chunk while the next one is drawn."""

    def __init__(self, policy: WorkerGroup, scorers: ActorPool, num_chunks: int) -> None:
        self._policy, self._scorers, self._num_chunks = policy, scorers, num_chunks

    def __call__(self, prompts: TensorDict) -> Collected:
        """See `Collector`."""
        start, depth = time.monotonic(), 0
        drawn, asked = [], []
        for chunk in prompts.split(len(prompts) // self._num_chunks):
            chains = self._policy.rollout(chunk)
            asked.append(self._scorers.submit("score", chains))
            depth = max(depth, self._scorers.num_pending())
            drawn.append(chains)
        rolled_out = time.monotonic()
        answers = self._scorers.gather(asked)
        scored = time.monotonic()
        busy = sum(seconds for _, seconds in answers)
        chains, scores = torch.cat(drawn), torch.cat([scores for scores, _ in answers])
        metrics = {
            "time/rollout": rolled_out - start,
            "time/score": scored - rolled_out,
            "reward_worker/queue_depth": depth,
            "reward_worker/busy": busy / (len(self._scorers) * (scored - start)),
            "reward_worker/chains_per_second": len(scores) / busy,
        }
        return Collected(chains, scores, metrics)


class RewardWorker:
    """A process that scores drawn chains."""

    def __init__(self, config: RLConfig) -> None:
        self._config = config

    def load(self, model_dir: str) -> None:
        """Build the rewards and read the codec of a model folder.

        Raises:
            CheckpointError, ConfigError, ResourceError, RewardError: as its parts.
        """
        enter_folder()
        config = self._config
        torch.set_num_threads(max(1, int(config.reward_workers.cpus_per_worker)))
        chain = Chain(config.chain, load_tokenizer(Path(model_dir)), has_vit=True)
        rewards = build_rewards(config.rewards, provides(chain, config.data.pairs))
        for reward in rewards.values():
            reward.start()
        device = "cuda" if config.reward_workers.gpus_per_worker else "cpu"
        codec = load_pretrained_codec(Path(model_dir)).to(device)
        self._scorer = Scorer(rewards, codec, TrainingPrompts(config.data), device)

    def score(self, chains: TensorDict) -> tuple[TensorDict, float]:
        """Scores of B chains, and the seconds it took."""
        start = time.monotonic()
        scores = self._scorer(chains)
        return scores, time.monotonic() - start
