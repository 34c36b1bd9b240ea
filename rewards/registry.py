"""The built-in rewards by name, and building those of a recipe. Does not import torch until it builds."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from gvcot.errors import ConfigError
from gvcot.plugins import resolve
from rewards.config import RewardConfig, check_gates

if TYPE_CHECKING:
    from rewards.base import Reward

REWARDS: dict[str, str] = {
    "mask_iou": "rewards.localization:MaskIoU",
    "box_iou": "rewards.localization:BoxIoU",
    "multi_region": "rewards.localization:MultiRegion",
    "soft_dice": "rewards.localization:SoftDice",
    "format": "rewards.localization:Format",
    "edit_accuracy": "rewards.fidelity:EditAccuracy",
    "preservation": "rewards.fidelity:Preservation",
    "psnr": "rewards.perceptual:Psnr",
    "ssim": "rewards.perceptual:Ssim",
    "lpips": "rewards.perceptual:Lpips",
    "clip_image": "rewards.clip:ClipImage",
    "clip_direction": "rewards.clip:ClipDirection",
    "where": "rewards.where:Where",
    "what_given_where": "rewards.where:WhatGivenWhere",
    "x_cot_change_iou": "rewards.where:XCotChangeIoU",
    "vlm_judge": "rewards.judge.reward:VLMJudge",
}
"""Name -> "module:Class"; `gvcot.plugins` reads it."""


PHASES = frozenset({"x_cot", "x_edit"})
"""What chains draw; all else that rewards require is a sample's."""


def build_rewards(configs: Mapping[str, RewardConfig], provides: Collection[str]) -> dict[str, Reward]:
    """The rewards of a recipe, in its order.

    Args:
        configs: component name -> what the recipe says of it. The name is the recipe's own: one class may
            serve twice with other options.
        provides: what the chain and dataset give: phases ("x_cot", "x_edit") and sample fields ("mask",
            "change_mask", "target", "things", "region_caption").

    Raises:
        ConfigError: an unknown reward, options it doesn't take, something it requires that isn't
            given, a phase in `reaches` that the chain doesn't have, or a gate on a reward that isn't there.
    """
    check_gates(configs)
    return {name: _build(name, config, provides) for name, config in configs.items()}


def reward_class(type_name: str) -> type[Reward]:
    """The class behind a name.

    Raises:
        ConfigError: there is none, or it is no reward.
    """
    from rewards.base import Reward

    cls = resolve("reward", type_name)
    if not (inspect.isclass(cls) and issubclass(cls, Reward)):
        raise ConfigError(f"{type_name!r} is not a subclass of rewards.base.Reward; make it one")
    return cls


def _build(name: str, config: RewardConfig, provides: Collection[str]) -> Reward:
    try:
        cls = reward_class(config.type)
    except ConfigError as error:
        raise ConfigError(f"rewards.{name}: {error}") from error
    try:
        inspect.signature(cls).bind(**config.options)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(cls).parameters) or "none"
        raise ConfigError(f"rewards.{name}.options: {error}; {config.type} accepts: {accepted}") from error
    reward = cls(**config.options)
    for attribute in ("requires", "reaches"):
        if not hasattr(reward, attribute):
            raise ConfigError(f"rewards.{name}: {config.type} sets no `{attribute}`; see rewards.base.Reward")
    missing = sorted(reward.requires - set(provides))
    if missing:
        raise ConfigError(
            f"rewards.{name}: {config.type} needs {', '.join(missing)}, but this chain and dataset give only "
            f"{', '.join(sorted(provides))}; choose a chain or dataset that gives it, or remove the reward"
        )
    if config.reaches is not None:
        reward.reaches = config.reaches
    if config.tasks is not None:
        reward.tasks = frozenset(config.tasks)
    phases = sorted(PHASES & set(provides))
    if reward.reaches not in phases:
        raise ConfigError(
            f"rewards.{name}.reaches: this chain has no phase {reward.reaches!r}; name one that it draws: "
            f"{', '.join(phases)}"
        )
    return reward
