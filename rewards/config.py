"""What a recipe says of one reward. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gvcot.errors import ConfigError, closest


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """Lets a reward count only where another one passes.

    Example: an untouched image preserves everything, which is worth nothing unless the edit was made.
        preservation: {type: preservation, gate: {reward: judge, above: 0.5}}
    """

    reward: str
    """The component that must pass; another entry of the recipe's `rewards`, of any weight."""

    above: float
    """It passes where its raw score is greater than this."""

    part: str | None = None
    """One of its parts that must pass instead, such as `sc` (0 to 10) of a judge."""

    floor: float = 0.0
    """The gated reward's score where it doesn't pass: its worst value, not a missing one, or a chain would
    gain by failing."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.above) and math.isfinite(self.floor)):
            raise ConfigError(
                f"rewards: a gate's above and floor must be finite; got {self.above}, {self.floor}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    """One entry of a recipe's `rewards` table.

    Example:
        rewards:
          mask_iou: {type: mask_iou, weight: 0.5}
          mine:     {type: "my_lab.rewards:Sharpness", options: {scale: 2.0}}

    Raises:
        ConfigError: an empty type or list of tasks, or a weight that is negative or not finite.
    """

    type: str
    """A built-in name (see `rewards.registry.REWARDS`) or "package.module:Class"."""

    weight: float = 1.0
    """Relative weight in the optimised sum, >= 0. With 0 the reward is scored and logged, never optimised."""

    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the reward's class; none by default."""

    reaches: str | None = None
    """The last phase whose randomness can change the score; None keeps what the class says. Causal credit
    gives the score to this phase and to all phases before it."""

    gate: GateConfig | None = None
    """Count this reward only where another one passes."""

    tasks: tuple[str, ...] | None = None
    """Score only samples of these tasks; the others have no such score, and it isn't counted as missing.
    None: all tasks."""

    def __post_init__(self) -> None:
        if not self.type:
            raise ConfigError('rewards: an entry has an empty type; give a name or "package.module:Class"')
        if not math.isfinite(self.weight) or self.weight < 0:
            raise ConfigError(
                f"rewards: {self.type} has weight {self.weight}, expected a finite number >= 0; to punish "
                "something, write a reward that is higher where there is less of it"
            )
        if self.tasks is not None and not self.tasks:
            raise ConfigError(
                f"rewards: {self.type} has an empty list of tasks; name at least one, or leave it out"
            )


def check_gates(rewards: Mapping[str, RewardConfig]) -> None:
    """Every gate must hang on another reward of the recipe.

    Raises:
        ConfigError: it names itself or nothing that exists.
    """
    for name, config in rewards.items():
        others = [other for other in rewards if other != name]
        if config.gate is not None and config.gate.reward not in others:
            raise ConfigError(
                f"rewards.{name}.gate.reward: there is no other reward {config.gate.reward!r}; "
                f"{closest(config.gate.reward, others)}. Give it weight 0 if it is only to gate"
            )
