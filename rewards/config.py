"""What a recipe says of one reward. Does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from gvcot.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    """One entry of a recipe's `rewards` table.

    Example:
        rewards:
          mask_iou: {type: mask_iou, weight: 0.5}
          mine:     {type: "my_lab.rewards:Sharpness", options: {scale: 2.0}}

    Raises:
        ConfigError: an empty type, or a weight that is negative or not finite.
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

    def __post_init__(self) -> None:
        if not self.type:
            raise ConfigError('rewards: an entry has an empty type; give a name or "package.module:Class"')
        if not math.isfinite(self.weight) or self.weight < 0:
            raise ConfigError(
                f"rewards: {self.type} has weight {self.weight}, expected a finite number >= 0; to punish "
                "something, write a reward that is higher where there is less of it"
            )
