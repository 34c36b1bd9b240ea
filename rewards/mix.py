"""From the rewards' raw scores to scores as the recipe counts them: tasks, gates, weights.

Weights enter here and in the advantage, never in a reward. Missing scores stay masked: they are not zeros.

Dimension legend: B chains, R reward components.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from gvcot.errors import RewardError
from gvcot.types import EditSample, RewardResult
from rewards.base import Reward, RewardBatch
from rewards.config import RewardConfig


def score_all(rewards: Mapping[str, Reward], batch: RewardBatch) -> dict[str, RewardResult]:
    """Raw results of every reward. Chains of tasks that a reward isn't for aren't shown to it: they come back
    invalid, with NaN for parts.

    Raises:
        RewardError: a reward returned something of the wrong form.
    """
    return {name: _score(name, reward, batch) for name, reward in rewards.items()}


def applies(reward: Reward, samples: Sequence[EditSample]) -> Tensor:
    """bool (B,): the samples whose task the reward is for."""
    return torch.tensor([reward.tasks is None or sample.task in reward.tasks for sample in samples])


def gated(
    raw_BR: Tensor,
    valid_BR: Tensor,
    configs: Mapping[str, RewardConfig],
    parts: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores as they count: a gated reward has its floor where the reward it hangs on doesn't pass, and is
    missing where that one is missing.

    Gates look at raw scores, so the order of components and gates on gated rewards don't matter.

    Args:
        raw_BR, valid_BR: raw scores, in the recipe's order.
        configs: the recipe's rewards.
        parts: "<reward>/<part>" -> (B,), NaN where missing; for gates on parts.

    Returns:
        raw_BR and valid_BR to optimise, and bool shut_BR, where a gate replaced a valid score.

    Raises:
        RewardError: a gate on a part that its reward doesn't give.
    """
    names, parts = list(configs), parts or {}
    out_BR, valid_out_BR, shut_BR = raw_BR.clone(), valid_BR.clone(), torch.zeros_like(valid_BR)
    for r, config in enumerate(configs.values()):
        if config.gate is None:
            continue
        judge = names.index(config.gate.reward)
        score_B, known_B = raw_BR[:, judge], valid_BR[:, judge]
        if config.gate.part is not None:
            score_B = _part(parts, config.gate.reward, config.gate.part)
            known_B = score_B.isfinite()
        valid_out_BR[:, r] &= known_B
        shut_BR[:, r] = valid_out_BR[:, r] & (score_B <= config.gate.above)
        out_BR[shut_BR[:, r], r] = config.gate.floor
    return out_BR, valid_out_BR, shut_BR


def _part(parts: Mapping[str, Tensor], reward: str, part: str) -> Tensor:
    known = sorted(key.removeprefix(f"{reward}/") for key in parts if key.startswith(f"{reward}/"))
    if part not in known:
        raise RewardError(
            f"a gate asks for the part {part!r} of the reward {reward}, which gives "
            f"{', '.join(known) or 'no parts'}; name one of them, or none for the reward itself"
        )
    return parts[f"{reward}/{part}"]


def reaches(
    rewards: Mapping[str, Reward], configs: Mapping[str, RewardConfig], phases: Sequence[str]
) -> list[str]:
    """The last phase that can change each score as it counts: a gated reward reaches as far as its gate does.

    Args:
        rewards, configs: of the recipe, by component.
        phases: names of the chain's phases, in order.
    """
    last = {name: reward.reaches for name, reward in rewards.items()}
    return [
        last[name] if config.gate is None else max(last[name], last[config.gate.reward], key=phases.index)
        for name, config in configs.items()
    ]


def overall(raw_BR: Tensor, valid_BR: Tensor, weight_R: Tensor) -> Tensor:
    """Weighted mean over each chain's valid components, weights renormalised over them.

    Args:
        raw_BR, valid_BR: scores, and which exist.
        weight_R: weights >= 0.

    Returns:
        fp32 (B,); NaN for chains without a valid component of positive weight (use nanmean).
    """
    weight_BR = weight_R.float() * valid_BR
    return (weight_BR * raw_BR).sum(dim=1) / weight_BR.sum(dim=1)


def geometric_mean(raw_BR: Tensor, valid_BR: Tensor, weight_R: Tensor) -> Tensor:
    """exp of the weighted mean of log r over each chain's valid components: near 0 where any of them is.
    Scores below 1e-6 count as 1e-6, so that two bad chains can still be told apart by their other scores.

    Args and returns as `overall`.
    """
    return overall(raw_BR.float().clamp_min(1e-6).log(), valid_BR, weight_R).exp()


def whole(valid_BR: Tensor, group_B: Tensor, weight_R: Tensor) -> Tensor:
    """bool (B,): chains whose scores may be added up and compared with their group's: they have every
    component of positive weight that any chain of the group has, and at least one."""
    wanted_BR = valid_BR & (weight_R > 0)
    _, index_B = torch.unique(group_B, return_inverse=True)
    most_PR = torch.zeros(int(index_B.max()) + 1, wanted_BR.shape[1], dtype=torch.int64)
    most_PR.index_add_(0, index_B, wanted_BR.long())
    return (wanted_BR == (most_PR[index_B] > 0)).all(dim=1) & wanted_BR.any(dim=1)


def weights(configs: Mapping[str, RewardConfig]) -> Tensor:
    """fp32 (R,) weights in the recipe's order."""
    return torch.tensor([config.weight for config in configs.values()], dtype=torch.float32)


def missing_share(valid_BR: Tensor, applies_BR: Tensor) -> Tensor:
    """fp32 (R,) share of missing scores among those that could exist, per component; 0 where none could."""
    return (applies_BR & ~valid_BR).float().sum(dim=0) / applies_BR.float().sum(dim=0).clamp_min(1)


def optimised(configs: Mapping[str, RewardConfig]) -> set[str]:
    """The components that training depends on: those of positive weight, and those that gate one of them."""
    counted = {name for name, config in configs.items() if config.weight > 0}
    gates = (configs[name].gate for name in counted)
    return counted | {gate.reward for gate in gates if gate is not None}


def check_missing(
    valid_BR: Tensor,
    applies_BR: Tensor,
    names: Sequence[str],
    max_missing_share: float,
    *,
    optimised: Collection[str] | None = None,
    reasons: Mapping[str, Mapping[str, int]] | None = None,
) -> None:
    """Stop a run that would train on too few scores.

    Args:
        valid_BR, applies_BR: bool; which scores exist, and which could.
        names: of the R components.
        max_missing_share: of the scores that could exist.
        optimised: the components that count; None for all. One that is only watched ends no run.
        reasons: by component, how many scores are missing for each reason it gives.

    Raises:
        RewardError: a component that counts misses more than `max_missing_share` of its scores.
    """
    shares_R = missing_share(valid_BR, applies_BR)
    for name, share, num in zip(names, shares_R.tolist(), applies_BR.sum(0).tolist(), strict=True):
        if share > max_missing_share and (optimised is None or name in optimised):
            given = sorted((reasons or {}).get(name, {}).items(), key=lambda item: -item[1])
            why = f" ({', '.join(f'{kind}: {count}' for kind, count in given)})" if given else ""
            raise RewardError(
                f"reward {name}: {share:.0%} of {num} scores are missing{why}, at most "
                f"{max_missing_share:.0%} may be. A judge may be unreachable, or the samples don't define "
                "this reward (no target, no change, or change everywhere): check the judge and give the same "
                "command again, which goes on from here; or choose other tasks, remove the reward, or raise "
                "max_missing_share"
            )


def _score(name: str, reward: Reward, batch: RewardBatch) -> RewardResult:
    rows = applies(reward, batch.samples).nonzero()[:, 0]
    num = len(batch.samples)
    if len(rows) == num:
        result = reward.score(batch)
        check_result(name, result, num)
        return result
    if len(rows) == 0:
        return RewardResult(raw_B=torch.zeros(num), valid_B=torch.zeros(num, dtype=torch.bool))
    result = reward.score(batch.rows(rows))
    check_result(name, result, len(rows))
    device = result.raw_B.device

    def spread(value: Tensor, fill: float | bool) -> Tensor:
        return torch.full((num,), fill, dtype=value.dtype, device=device).index_copy(
            0, rows.to(device), value
        )

    return RewardResult(
        raw_B=spread(result.raw_B, 0.0),
        valid_B=spread(result.valid_B, False),
        parts={part: spread(value, float("nan")) for part, value in result.parts.items()},
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
