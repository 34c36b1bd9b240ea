"""Which reward trains which phase of a chain.

Legend: B chains, R reward components, K phases in the order of generation.

A phase's score function should multiply only rewards that its randomness can change; any other reward is pure
variance. A reward states the last phase that can change it (`reaches`). The paint's IoU, for instance, is
fixed once the reasoning image is drawn, while a judge of the edit depends on both images.

    causal      phase k gets every reward that reaches phase k or a later one (the default)
    factorised  phase k gets only the rewards that reach exactly phase k
    broadcast   every phase gets every reward
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gvcot.errors import ConfigError, closest
from rl.advantage import combine

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
    *,
    whiten: bool = False,
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The advantage of each phase: A_ik = sum over the rewards r that train phase k of w_r A_ir.

    Args:
        advantage_BR, kept_BR: per component, from `rl.advantage.group_advantage`.
        weights_R: weight of each component; 0 only monitors.
        reaches: per component, the last phase whose randomness can change it.
        phases: names of the chain's phases, in order.
        mode: see the module docstring.
        whiten: whiten each phase's advantages over the batch (see `rl.advantage.combine`).

    Returns:
        advantage_BK (exactly 0 where not kept) and kept_BK, False for (chain, phase) pairs without any
        signal: these belong in neither the loss nor its denominator.

    Raises:
        ConfigError: as `routing`.
    """
    routes_RK = routing(reaches, phases, mode).to(advantage_BR.device)
    columns = [
        combine(advantage_BR, kept_BR, weights_R * routes_RK[:, k], whiten=whiten) for k in range(len(phases))
    ]
    return torch.stack([a for a, _ in columns], dim=1), torch.stack([kept for _, kept in columns], dim=1)
