"""From the rewards' raw scores to one table, and its overall value for the log.

Weights enter here and in the advantage, never in a reward. Missing scores stay masked: they are not zeros.

Dimension legend: B chains, R reward components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gvcot.errors import RewardError
from gvcot.types import RewardResult
from rewards.base import Reward, RewardBatch
from rewards.config import RewardConfig


class Scores(NamedTuple):
    """All components of B chains, on the CPU."""

    raw_BR: Tensor
    """fp32 raw scores; 0 where missing."""

    valid_BR: Tensor
    """bool; False where missing."""

    names: tuple[str, ...]
    """Component names, in the recipe's order."""


def score_all(rewards: Mapping[str, Reward], batch: RewardBatch) -> dict[str, RewardResult]:
    """Raw results of every reward.

    Raises:
        RewardError: a reward returned something of the wrong form.
    """
    results = {name: reward.score(batch) for name, reward in rewards.items()}
    for name, result in results.items():
        check_result(name, result, len(batch.samples))
    return results


def combine(results: Mapping[str, RewardResult], configs: Mapping[str, RewardConfig]) -> Scores:
    """Stack the results in the recipe's order; scores that are not finite become missing.

    Args:
        results: one per component.
        configs: the recipe's rewards; their order is the order of the columns.

    Raises:
        RewardError: other components than the recipe's, none at all, or a result of the wrong form.
    """
    if not configs or set(results) != set(configs):
        raise RewardError(
            f"rewards: the recipe names {sorted(configs)} but results came for {sorted(results)}; score "
            "exactly the recipe's rewards, at least one"
        )
    num_chains = len(results[next(iter(configs))].raw_B)
    raw, valid = [], []
    for name in configs:
        result = results[name]
        check_result(name, result, num_chains)
        finite_B = result.raw_B.isfinite()
        valid.append((result.valid_B & finite_B).cpu())
        raw.append(torch.where(result.valid_B & finite_B, result.raw_B, 0.0).float().cpu())
    return Scores(torch.stack(raw, dim=1), torch.stack(valid, dim=1), tuple(configs))


def count_nonfinite(results: Mapping[str, RewardResult]) -> dict[str, int]:
    """Per component, how many scores were called valid but are NaN or infinite; `combine` masks them."""
    return {name: int((r.valid_B & ~r.raw_B.isfinite()).sum()) for name, r in results.items()}


def overall(raw_BR: Tensor, valid_BR: Tensor, weight_R: Tensor) -> Tensor:
    """Weighted mean over each chain's valid components, weights renormalised over them; for logs only.

    Args:
        raw_BR, valid_BR: as `combine` gives them.
        weight_R: weights >= 0.

    Returns:
        fp32 (B,); NaN for chains without a valid component of positive weight (use nanmean).
    """
    weight_BR = weight_R.float() * valid_BR
    return (weight_BR * raw_BR).sum(dim=1) / weight_BR.sum(dim=1)


def weights(configs: Mapping[str, RewardConfig]) -> Tensor:
    """fp32 (R,) weights in the recipe's order."""
    return torch.tensor([config.weight for config in configs.values()], dtype=torch.float32)


def missing_share(valid_BR: Tensor) -> Tensor:
    """fp32 (R,) share of chains whose score is missing, per component."""
    return 1.0 - valid_BR.float().mean(dim=0)


def check_missing(valid_BR: Tensor, names: Sequence[str], max_missing_share: float) -> None:
    """Stop a run that would train on too few scores.

    Raises:
        RewardError: a component misses more than `max_missing_share` of its scores.
    """
    for name, share in zip(names, missing_share(valid_BR).tolist(), strict=True):
        if share > max_missing_share:
            raise RewardError(
                f"reward {name}: {share:.0%} of {len(valid_BR)} scores are missing, at most "
                f"{max_missing_share:.0%} may be. A judge may be unreachable, or the samples don't define "
                "this reward (no target, no change, or change everywhere): check the judge, choose other "
                "tasks, remove the reward, or raise max_missing_share"
            )


def check_result(name: str, result: RewardResult, num_chains: int) -> None:
    """Hold a reward to its form: one score, one validity and one value of each part per chain.

    Raises:
        RewardError: another type, shape or dtype.
    """
    if not isinstance(result, RewardResult):
        raise RewardError(
            f"reward {name}: returned {type(result).__name__}, expected RewardResult; fix its score()"
        )
    fields = {"raw_B": result.raw_B, "valid_B": result.valid_B, **result.parts}
    for field, value_B in fields.items():
        if not isinstance(value_B, Tensor) or value_B.shape != (num_chains,):
            got = tuple(value_B.shape) if isinstance(value_B, Tensor) else type(value_B).__name__
            raise RewardError(
                f"reward {name}: {field} is {got}, expected a tensor ({num_chains},), one value per chain; "
                "fix its score()"
            )
    if result.valid_B.dtype != torch.bool or not result.raw_B.is_floating_point():
        raise RewardError(
            f"reward {name}: raw_B is {result.raw_B.dtype} and valid_B {result.valid_B.dtype}, expected "
            "floats and bool; fix its score()"
        )
