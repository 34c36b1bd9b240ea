"""`gvcot sweep ablate-rewards`: what each reward of an RL recipe is good for, and what it costs.

Arms: all rewards, each alone, all but each, easy rewards gated by hard ones, rewards summed before they are
normalised. A reward that an arm leaves out has weight 0 there: it is still scored, so all arms are measured
alike.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweep import default_root, run_trials, show
from experiments.sweep_config import Comparison, SweepConfig, as_override
from experiments.sweep_results import EVAL, SCORING_FILE
from gvcot.config import load
from gvcot.errors import ConfigError
from gvcot.run_dir import write_atomic
from rewards.config import RewardConfig
from rl.config import RLConfig

if TYPE_CHECKING:
    from torch import Tensor

    from gvcot.chain import Chain
    from gvcot.types import EditSample

GATES: dict[str, tuple[str, float]] = {
    "preservation": ("edit_accuracy", 0.0),
    "format": ("mask_iou", 0.25),
}
"""Type of an easy reward -> type of the hard one that it hangs on in the arm `gated`, and what that one must
exceed."""

SUMMED = ("advantage.normalize=sum",)
"""Overrides of the arm `summed`; in the others each component is normalised on its own (GDPO)."""


def ablation(
    recipe: str,
    overrides: Sequence[str],
    *,
    seeds: Sequence[int],
    max_concurrent: int | None = None,
) -> SweepConfig:
    """The sweep over an RL recipe's rewards of positive weight.

    Args:
        recipe: a shipped RL recipe by its full name, or a YAML file.
        overrides: of the recipe, in all arms.
        seeds, max_concurrent: of the sweep.

    Raises:
        ConfigError: the recipe is wrong, or has a single reward.
    """
    base = load(RLConfig, recipe, overrides)
    names = [name for name, reward in base.rewards.items() if reward.weight > 0]
    if len(names) < 2:
        raise ConfigError(f"{recipe} trains on {names} alone; an ablation needs at least two rewards")
    arms = {"all": ()}
    arms |= {f"only-{name}": _without([n for n in names if n != name]) for name in names}
    arms |= {f"without-{name}": _without([name]) for name in names}
    arms |= {"gated": gates(base.rewards), "summed": SUMMED}
    same = _same_arms(recipe, overrides, arms)
    pairs = [("all", f"without-{name}", [name]) for name in names]
    pairs += [("gated", "all", names), ("summed", "all", names), ("gated", "summed", names)]
    return SweepConfig(
        name=f"ablate-rewards-{base.name}",
        command="rl",
        recipe=recipe,
        arms={arm: (*overrides, *settings) for arm, settings in arms.items() if same[arm] == arm},
        seeds=tuple(seeds),
        metric=tuple(f"{EVAL}{name}" for name in names),
        curves=tuple(f"reward/{name}" for name in names),
        compare=tuple(
            Comparison(metric=f"{EVAL}{name}", arm=same[arm], against=same[against])
            for arm, against, metrics in pairs
            if same[arm] != same[against]
            for name in metrics
        ),
        max_concurrent=max_concurrent,
    )


def gates(rewards: Mapping[str, RewardConfig]) -> tuple[str, ...]:
    """Overrides that hang easy rewards on hard ones that are optimised too, as `GATES` says; those that hang
    on something already are left as they are."""
    by_type = {reward.type: name for name, reward in rewards.items() if reward.weight > 0}
    return tuple(
        as_override(f"rewards.{name}.gate", {"reward": by_type[hard], "above": above})
        for name, reward in rewards.items()
        if reward.weight > 0 and reward.gate is None
        for hard, above in [GATES.get(reward.type, ("", 0.0))]
        if hard in by_type
    )


def run_ablation(config: SweepConfig, root: Path | None) -> bool:
    """Run the sweep of `ablation`, as `run_sweep` does, and measure what scoring takes.

    Raises:
        CheckpointError, RewardError: as `scoring_seconds`.
        ConfigError, ResourceError: as `run_trials`.
    """
    root = root or default_root(config)
    seconds: dict[str, float] | None = None
    if not (root / SCORING_FILE).is_file():  # before trials load the machine
        seconds = scoring_seconds(load(RLConfig, config.recipe, config.arms["all"]))
    done = run_trials(config, root)
    if seconds is not None:
        write_atomic(root / SCORING_FILE, json.dumps(seconds, indent=1))
    show(root)
    return done


def scoring_seconds(config: RLConfig, repeats: int = 3) -> dict[str, float]:
    """Seconds that each reward takes of a training step, in which the workers score side by side.

    Measured in this process on the true pictures of training scenes, with a worker's threads; the median over
    some steps' scenes. Rewards are started before.

    Raises:
        CheckpointError: the recipe's model is unusable.
        ConfigError, RewardError: a reward can't be started.
    """
    import torch

    from gvcot.chain import Chain
    from gvcot.model.pretrained import find_model, load_pretrained
    from rewards.mix import score_all
    from rewards.registry import build_rewards
    from rl.scoring import TrainingPrompts, provides, reward_batch

    torch.set_num_threads(config.cluster.cpus_per_worker)
    policy = load_pretrained(find_model(config.model))
    chain = Chain(config.chain, policy.tokenizer, has_vit=policy.model.config.vit is not None)
    rewards = build_rewards(config.rewards, provides(chain, config.data.pairs))
    for reward in rewards.values():
        reward.start()
    num, prompts = config.prompts_per_step, TrainingPrompts(config.data)
    prompt_B = torch.arange(num).repeat_interleave(config.group_size)
    taken: dict[str, list[float]] = {name: [] for name in rewards}
    for step in range(repeats):
        samples = prompts(range(step * num, (step + 1) * num))
        images = {name: image[prompt_B] for name, image in true_images(chain, samples).items()}
        batch = reward_batch(policy.codec, samples, prompt_B, images)
        for name, reward in rewards.items():
            began = time.monotonic()
            score_all({name: reward}, batch)
            taken[name].append(time.monotonic() - began)
    return {name: statistics.median(times) / config.cluster.num_workers for name, times in taken.items()}


def true_images(chain: Chain, samples: Sequence[EditSample]) -> dict[str, Tensor]:
    """Phase -> what supervised stages show as its image, (P, 3, H, W)."""
    from gvcot.data.images import to_tensor
    from gvcot.data.show import painted

    truth = {
        "painted": painted,
        "target": lambda s: s.source_HW3 if s.target_HW3 is None else s.target_HW3,
        "source": lambda s: s.source_HW3,
    }
    return {phase.name: to_tensor([truth[phase.truth](s) for s in samples]) for phase in chain.phases}


def _without(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"rewards.{name}.weight=0" for name in names)


def _same_arms(recipe: str, overrides: Sequence[str], arms: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Each arm -> the first that has the same configuration."""
    first: dict[str, str] = {}
    configs = {arm: repr(load(RLConfig, recipe, [*overrides, *settings])) for arm, settings in arms.items()}
    for arm, config in configs.items():
        first.setdefault(config, arm)
    return {arm: first[config] for arm, config in configs.items()}
