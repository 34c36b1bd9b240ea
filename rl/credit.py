"""Which reward trains which phase of a chain.

Legend: B chains, R reward components, K phases in the order of generation.

A phase's score function should multiply only rewards that its randomness can change; any other reward is pure
variance. A reward states the last phase that can change it (`reaches`). The paint's IoU, for instance, is
fixed once the reasoning image is drawn, while a judge of the edit depends on both images.

    causal      phase k gets every reward that reaches phase k or a later one (the default)
    factorised  phase k gets only the rewards that reach exactly phase k
    broadcast   every phase gets every reward

Rewards that were settled before a phase began can't be its doing, but they predict what comes after: a good
edit is likelier on a well-placed region, whatever the edit phase does. `without_upstream` takes off the part
of a phase's advantage that such rewards predict: a baseline that depends on the state in which
the phase began (a control variate), which lowers the gradient's variance and leaves its expectation as it is,
but for a bias of the order of 1 / B, since the fit is on the same chains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gvcot.errors import ConfigError, closest
from rewards import mix
from rl.advantage import combine, whitened

CreditMode = Literal["causal", "broadcast", "factorised"]


def routing(reaches: Sequence[str], phases: Sequence[str], mode: CreditMode) -> Bool[Tensor, "R K"]:
    """True where reward r trains phase k.

    Raises:
        ConfigError: if a reward reaches a phase that the chain lacks, or the mode is unknown.
    """
    for phase in reaches:
        if phase not in phases:
            raise ConfigError(
                f"a reward depends on the phase {phase!r}, which this chain doesn't have "
                f"({closest(phase, phases)}). Choose a chain that generates it, or remove that reward."
            )
    position_R1 = torch.tensor([phases.index(phase) for phase in reaches], dtype=torch.long)[:, None]
    position_1K = torch.arange(len(phases))[None, :]
    match mode:
        case "causal":
            return position_1K <= position_R1
        case "factorised":
            return position_1K == position_R1
        case "broadcast":
            return torch.ones(len(reaches), len(phases), dtype=torch.bool)
        case _:
            raise ConfigError(
                f"unknown credit mode {mode!r}; {closest(mode, ('causal', 'broadcast', 'factorised'))}"
            )


def route(
    advantage_BR: Float[Tensor, "B R"],
    kept_BR: Bool[Tensor, "B R"],
    weights_R: Float[Tensor, " R"],
    reaches: Sequence[str],
    phases: Sequence[str],
    mode: CreditMode,
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The advantage of each phase: A_ik = sum over the rewards r that train phase k of w_r A_ir.

    Args:
        advantage_BR, kept_BR: per component, from `rl.advantage.group_advantage`.
        weights_R: weight of each component; 0 only monitors.
        reaches: per component, the last phase whose randomness can change it.
        phases: names of the chain's phases, in order.
        mode: see the module docstring.

    Returns:
        advantage_BK (exactly 0 where not kept) and kept_BK, False for (chain, phase) pairs without any
        signal: these belong in neither the loss nor its denominator.

    Raises:
        ConfigError: as `routing`.
    """
    routes_RK = routing(reaches, phases, mode).to(advantage_BR.device)
    columns = [combine(advantage_BR, kept_BR, weights_R * routes_RK[:, k]) for k in range(len(phases))]
    advantages, kepts = zip(*columns, strict=True)
    return torch.stack(advantages, dim=1), torch.stack(kepts, dim=1)


def totals(
    raw_BR: Float[Tensor, "B R"],
    valid_BR: Bool[Tensor, "B R"],
    group_B: Int[Tensor, " B"],
    weights_R: Float[Tensor, " R"],
    routes_RK: Bool[Tensor, "R K"],
    mean: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """One score per phase from all the rewards that train it, before anything is normalised.

    Args:
        raw_BR, valid_BR: scores as they count.
        group_B: group of each chain.
        weights_R: weight of each component.
        routes_RK: from `routing`.
        mean: `rewards.mix.overall` or `rewards.mix.geometric_mean`.

    Returns:
        total_BK (0 where not valid) and valid_BK, False where a chain lacks a component that others of its
        group have: their sums can't be compared.
    """
    total_BK = raw_BR.new_zeros(len(raw_BR), routes_RK.shape[1])
    valid_BK = torch.zeros_like(total_BK, dtype=torch.bool)
    for k in range(routes_RK.shape[1]):
        weights = weights_R * routes_RK[:, k]
        valid_BK[:, k] = mix.whole(valid_BR, group_B, weights)
        total_BK[:, k] = torch.where(valid_BK[:, k], mean(raw_BR, valid_BR, weights), 0)
    return total_BK, valid_BK


def without_upstream(
    advantage_BK: Float[Tensor, "B K"],
    kept_BK: Bool[Tensor, "B K"],
    advantage_BR: Float[Tensor, "B R"],
    kept_BR: Bool[Tensor, "B R"],
    reaches: Sequence[str],
    phases: Sequence[str],
) -> Float[Tensor, "B K"]:
    """Each phase's advantage less what the rewards that were settled before it predict (see the module
    docstring). Arguments as of `route`."""
    causal_RK = routing(reaches, phases, "causal").to(advantage_BR.device)
    known_BR = torch.where(kept_BR, advantage_BR, 0)
    columns = [
        residual(advantage_BK[:, k], kept_BK[:, k], known_BR[:, ~causal_RK[:, k]]) for k in range(len(phases))
    ]
    return torch.stack(columns, dim=1)


def whiten_phases(advantage_BK: Float[Tensor, "B K"], kept_BK: Bool[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Each phase whitened over the batch (see `rl.advantage.whitened`)."""
    return torch.stack([whitened(a, kept) for a, kept in zip(advantage_BK.T, kept_BK.T, strict=True)], dim=1)


def residual(
    advantage_B: Float[Tensor, " B"], kept_B: Bool[Tensor, " B"], predictors_BU: Float[Tensor, "B U"]
) -> Float[Tensor, " B"]:
    """What is left of the kept advantages when the least-squares fit on U predictors is taken off.

    There is no intercept: both sides are centred within their groups. The fit is over the whole batch, so
    that a chain's own noise hardly moves its own baseline. Entries that aren't kept stay as they are.
    """
    x_MU, y_M = predictors_BU[kept_B].double(), advantage_B[kept_B].double()
    slope_U = torch.linalg.pinv(x_MU) @ y_M
    out_B = advantage_B.clone()
    out_B[kept_B] = (y_M - x_MU @ slope_U).to(advantage_B.dtype)
    return out_B


def best_of_group(
    advantage_BK: Float[Tensor, "B K"], kept_BK: Bool[Tensor, "B K"], group_B: Int[Tensor, " B"]
) -> Bool[Tensor, "B K"]:
    """The chains that rejection sampling keeps: of each group the best, with all of its phases.

    Best by the first phase's advantage, which has all rewards where credit is causal. Groups without a signal
    keep none; of equals the first is kept.
    """
    rank_B = torch.where(kept_BK[:, 0], advantage_BK[:, 0], -torch.inf)
    best_B = torch.zeros_like(kept_BK[:, 0])
    for group in group_B.unique():
        members = (group_B == group).nonzero()[:, 0]
        best = members[rank_B[members].argmax()]
        best_B[best] = rank_B[best] > -torch.inf
    return best_B[:, None].expand_as(kept_BK).contiguous()
