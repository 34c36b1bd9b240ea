"""What is logged of a training step; names are explained in docs/metrics.md.

Legend: B chains, R reward components.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from rl.config import RLConfig
from rollout.tensors import table


def step_metrics(
    config: RLConfig,
    scores: TensorDict,
    credit: dict[str, Tensor],
    updates: TensorDict,
    phases: Sequence[str],
) -> dict[str, float]:
    """All scalars of one step.

    Args:
        scores: B rows of the workers' `score`.
        credit: statistics per component, from `rl.train.credited`.
        updates: one row of metrics per worker.
        phases: names of the chain's phases.
    """
    out = {"reward/overall": credit["overall"].item()}
    for r, name in enumerate(config.rewards):
        out[f"reward/{name}"] = credit["mean"][r].item()
        out[f"reward_std/{name}"] = credit["std"][r].item()
        out[f"reward_missing/{name}"] = credit["missing_fraction"][r].item()
        out[f"reward_zero_std/{name}"] = credit["zero_std_fraction"][r].item()
        if config.rewards[name].gate is not None:
            out[f"reward_shut/{name}"] = credit["shut_fraction"][r].item()
    for name, value_B in table(scores, "part").items():
        out[f"reward_part/{name}"] = value_B.nanmean().item()
    for name, value_B in table(scores, "canary").items():
        out[f"canary/{name}"] = value_B.nanmean().item()
    for key, value_W in sorted((str(k), v) for k, v in updates.items()):
        phase, _, name = key.partition("/")
        area = "rollout" if name.startswith("logprob_gap") else "policy"
        full = f"{area}/{phase}/{name}" if phase in phases else f"policy/{key}"
        reduce = torch.max if key.endswith("_max") else torch.min if key.endswith("_min") else torch.mean
        out[full] = reduce(value_W).item()
    return out
