"""How rollouts are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gvcot.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig:
    """Stochastic sampling of chains. No classifier-free guidance is used in rollouts."""

    num_steps: int = 8
    """Denoising steps per image, S."""

    shift: float = 1.0
    """Shift of the sampling grid towards noise."""

    sampler: Literal["sde", "cps"] = "sde"
    """Flow-SDE (a true density), or CPS (cleaner images, log-probs of another scale)."""

    noise_level: float = 0.7
    """a; 0 is the ODE, which has no log-probs and can't be trained on."""

    window_size: int = 2
    """Stochastic steps per image, W; the other steps follow the ODE."""

    window_range: tuple[int, int] = (0, 4)
    """The window lies within these steps [lo, hi): by default the noisier half."""

    initial_noise: Literal["chain", "group"] = "chain"
    """Whether each chain starts from noise of its own (Flow-GRPO), or all of a group from the same
    (DanceGRPO): they then differ by the stochastic steps alone, which is what the update gives credit to."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"rollout.num_steps: expected at least 1; got {self.num_steps}")
        if self.noise_level < 0:
            raise ConfigError(f"rollout.noise_level: expected 0 or more; got {self.noise_level}")
