"""From drawn chains to scores: what rewards get to see, and the canaries beside them.

Legend: B chains, P prompts, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from gvcot.chain import Chain
from gvcot.data.images import to_tensor
from gvcot.data.pairs.config import PairsConfig
from gvcot.data.pairs.dataset import Bad
from gvcot.data.source import HeldOut, given_fields, held_out, prompt_source
from gvcot.model.codec import Codec, decode_in_parts, encode_in_parts
from gvcot.types import EditSample, RewardResult
from rewards.base import Reward, RewardBatch
from rewards.canaries import canaries, unedited
from rewards.mix import applies, score_all
from rl.config import PromptConfig, RLConfig
from rollout.tensors import table


class TrainingPrompts:
    """The samples of a run's stream by index; the latest ones are kept."""

    def __init__(self, data: PromptConfig) -> None:
        """
        Raises:
            DataError, ConfigError: no such dataset.
        """
        self._source = prompt_source(data.pairs, seed=data.seed, size=data.size, world=data.world)
        self._sample = lru_cache(maxsize=4096 if data.pairs is None else 64)(self._source.sample)

    def __call__(self, index_P: Tensor | Sequence[int]) -> list[EditSample]:
        """The samples of P indices."""
        return [self._sample(int(i)) for i in index_P]

    @property
    def bad(self) -> Sequence[Bad]:
        """Samples of a dataset that were passed over so far."""
        return self._source.bad


def evaluation_set(config: RLConfig) -> HeldOut:
    """What a run is evaluated on.

    Raises:
        DataError, ConfigError: no such dataset.
    """
    options, data = config.eval, config.data
    return held_out(options.pairs, options.split, size=data.size, world=options.world or data.world)


class Scorer:
    """Scores drawn chains with a recipe's rewards; the same in policy workers and reward workers."""

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        codec: Codec,
        samples: TrainingPrompts,
        device: torch.device | str = "cpu",
    ) -> None:
        self._rewards, self._codec, self._samples, self._device = rewards, codec, samples, device

    @torch.no_grad()
    def __call__(self, chains: TensorDict) -> TensorDict:
        """B drawn chains -> B rows of `score_columns`, and "canary/<name>"."""
        index_P, prompt_B = prompts_of(chains["index"])
        images = table(chains, "images")
        batch = reward_batch(self._codec, self._samples(index_P), prompt_B, images, device=self._device)
        columns = score_columns(self._rewards, batch)
        num = len(prompt_B)
        for name, value in watch(self._rewards, batch).items():
            columns[f"canary/{name}"] = torch.full((num,), value)
        return TensorDict({key: value.cpu() for key, value in columns.items()}, batch_size=[num])


def prompts_of(index_B: Tensor) -> tuple[Tensor, Tensor]:
    """Adjacent equal indices are one prompt: (index of each prompt (P,), prompt of each chain (B,))."""
    index_P, prompt_B = torch.unique_consecutive(index_B, return_inverse=True)
    return index_P, prompt_B


def provides(chain: Chain, pairs: PairsConfig | None = None) -> set[str]:
    """What rewards can require of this chain on a dataset, or on Scenes."""
    return {phase.name for phase in chain.phases} | given_fields(pairs)


@torch.no_grad()
def reward_batch(
    codec: Codec,
    samples_P: Sequence[EditSample],
    prompt_B: Tensor,
    images: Mapping[str, Tensor],
    *,
    device: torch.device | str = "cpu",
) -> RewardBatch:
    """Chains with what is known of their samples; each sample's round trips are computed once.

    Args:
        samples_P: the prompts.
        prompt_B: int64, the prompt of each chain; chains of a prompt are adjacent.
        images: decoded images by phase name, (B, 3, H, W).
        device: where rewards compute.
    """
    source_rt = _round_trip(codec, [s.source_HW3 for s in samples_P], device)
    targets = [s.source_HW3 if s.target_HW3 is None else s.target_HW3 for s in samples_P]
    target_rt = _round_trip(codec, targets, device)
    has_target = any(s.target_HW3 is not None for s in samples_P)
    return RewardBatch(
        samples=[samples_P[int(p)] for p in prompt_B],
        images={phase: image.to(device) for phase, image in images.items()},
        source_rt_B3HW=source_rt[prompt_B],
        target_rt_B3HW=target_rt[prompt_B] if has_target else None,
        group_B=prompt_B.to(device),
    )


def _round_trip(codec: Codec, images: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    return decode_in_parts(codec, encode_in_parts(codec, to_tensor(images).to(device)))


def score_columns(rewards: Mapping[str, Reward], batch: RewardBatch) -> dict[str, Tensor]:
    """Scores of B chains, as they travel to the driver: "raw/<reward>" fp32, "valid/<reward>" and
    "applies/<reward>" bool, and "part/<reward>/<part>", each (B,)."""
    results = score_all(rewards, batch)
    columns = {f"raw/{name}": r.raw_B for name, r in results.items()}
    columns |= {f"valid/{name}": r.valid_B for name, r in results.items()}
    columns |= {f"applies/{name}": applies(reward, batch.samples) for name, reward in rewards.items()}
    for name, r in results.items():
        columns |= {f"part/{name}/{part}": value_B for part, value_B in r.parts.items()}
    return columns


def first_of_each_group(batch: RewardBatch) -> RewardBatch:
    """One chain per prompt."""
    keep = torch.cat([batch.group_B.new_ones(1, dtype=torch.bool), batch.group_B.diff() != 0])
    return batch.rows(keep.nonzero()[:, 0])


def watch(rewards: Mapping[str, Reward], batch: RewardBatch) -> dict[str, float]:
    """Means of the canaries, and of each reward of the unedited source ("unedited/<reward>")."""
    values = {name: value_B.mean().item() for name, value_B in canaries(batch).items()}
    reaching = {name: r for name, r in rewards.items() if r.reaches == "x_edit"}
    if "x_edit" in batch.images:
        for name, result in unedited(reaching, first_of_each_group(batch)).items():
            values[f"unedited/{name}"] = valid_mean(result)
    return values


def valid_mean(result: RewardResult) -> float:
    """Mean over valid scores; NaN where there are none."""
    return result.raw_B[result.valid_B].mean().item()
