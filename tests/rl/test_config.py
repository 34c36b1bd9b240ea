"""Recipes that can't work are refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gvcot.config import load
from gvcot.errors import ConfigError
from gvcot.run_dir import RunDir
from rewards.config import GateConfig, RewardConfig
from rl.config import ClusterConfig, LossConfig, RewardWorkersConfig, RLConfig
from rollout.config import RolloutConfig


def config(**changes: Any) -> RLConfig:
    plain: dict[str, Any] = {
        "name": "test",
        "model": "somewhere",
        "steps": 1,
        "prompts_per_step": 2,
        "group_size": 2,
        "rewards": {"mask_iou": RewardConfig(type="mask_iou")},
    }
    return RLConfig(**(plain | changes))


def test_the_plain_configuration_is_accepted() -> None:
    assert config().loss.name == "grpo_clip"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": {}}, "at least one component"),
        ({"rewards": {"mask_iou": RewardConfig(type="mask_iou", weight=0.0)}}, "every weight is 0"),
        ({"group_size": 1}, "at least 2 chains to compare; got 1"),
        ({"prompts_per_step": 3}, "prompts_per_step=3 can't be dealt evenly to cluster.num_workers=2"),
        ({"rollout": RolloutConfig(noise_level=0.0)}, "no log-probs to train on"),
        (
            {"objective": "diffusion_nft", "rollout": RolloutConfig(initial_noise="group")},
            "all chains of a group would be the same",
        ),
        ({"rollout": RolloutConfig(window_size=0)}, "no log-probs to train on"),
        (
            {"prompts_per_step": 4, "reward_workers": RewardWorkersConfig(num_workers=3, chunks=2)},
            "num_workers=3 share chunks=2, so some would never work",
        ),
        ({"loss": LossConfig(updates_per_rollout=0)}, "updates_per_rollout: expected at least 1; got 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_workers_are_spread_evenly_over_machines_of_a_cluster() -> None:
    with pytest.raises(ConfigError, match="3 workers can't be spread evenly over 2 machines"):
        ClusterConfig(num_workers=3, num_nodes=2, address="head:6379")
    with pytest.raises(ConfigError, match="needs a Ray cluster: give its address"):
        ClusterConfig(num_workers=2, num_nodes=2)


def test_a_resumed_run_may_follow_its_judge_but_not_change_it(tmp_path: Path) -> None:
    def asking(base_url: str, model: str = "vlm", **options: Any) -> RLConfig:
        options["endpoints"] = [{"base_url": base_url, "model": model}]
        return config(rewards={"judge": RewardConfig(type="vlm_judge", options=options)})

    RunDir.open(tmp_path / "a", asking("http://here:1/v1"))
    RunDir.open(tmp_path / "a", asking("http://there:2/v1", timeout_s=9.0))
    with pytest.raises(ConfigError, match=r"rewards.judge.options.endpoints.0.model: 'vlm' -> 'other'"):
        RunDir.open(tmp_path / "a", asking("http://there:2/v1", model="other", timeout_s=9.0))
    with pytest.raises(ConfigError, match=r"rewards.judge.options.calls: '\(absent\)' -> 3"):
        RunDir.open(tmp_path / "a", asking("http://there:2/v1", timeout_s=9.0, calls=3))


def test_prompts_are_dealt_to_the_workers_there_are() -> None:
    assert config(prompts_per_step=3, cluster=ClusterConfig(num_workers=3)).prompts_per_step == 3


@pytest.mark.parametrize("recipe", ["rl/tiny", "rl/quickstart"])
def test_shipped_recipes_are_valid(recipe: str) -> None:
    assert load(RLConfig, recipe).rewards


def test_a_reward_of_a_recipe_is_removed_or_added_by_an_override() -> None:
    read = load(RLConfig, "rl/tiny", ["rewards.format=null", "rewards.extra={type: soft_dice, weight: 0.0}"])
    assert "format" not in read.rewards
    assert read.rewards["extra"].weight == 0.0


def test_the_gate_of_the_docs_can_be_written_in_yaml(tmp_path: Path) -> None:
    recipe = tmp_path / "gated.yaml"
    recipe.write_text(
        "extends: rl/tiny\n"
        "rewards:\n"
        "  preservation: {type: preservation, gate: {reward: edit_accuracy, above: 0.1}}\n"
    )
    gate = load(RLConfig, recipe).rewards["preservation"].gate
    assert gate == GateConfig(reward="edit_accuracy", above=0.1)
