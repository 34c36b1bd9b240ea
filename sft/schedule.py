"""The learning-rate schedule of supervised stages."""

from __future__ import annotations

import math

from sft.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine to `final_lr_share` of the peak."""
    return config.lr * peak_share(config, step, num_steps)


def peak_share(config: OptimConfig, step: int, num_steps: int) -> float:
    """The learning rate of a step as a share of its peak, whichever parameters it is for."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.final_lr_share + (1 - config.final_lr_share) * 0.5 * (1 + math.cos(math.pi * done))
