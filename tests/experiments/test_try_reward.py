"""Planted behaviours against the exact rewards and the default alarms, on the shipped codec."""

from __future__ import annotations

import pytest

from experiments import try_reward
from gvcot.data import scenes
from gvcot.data.source import SAMPLE_FIELDS
from gvcot.errors import ConfigError
from gvcot.model.pretrained import Pretrained, find_model, load_pretrained
from rewards.base import RewardBatch
from rewards.config import RewardConfig
from rewards.planted import BEHAVIOURS
from rewards.registry import build_rewards
from rl.config import default_alarms
from rl.scoring import valid_mean

FOOLED = {
    # reward: behaviours that it likes as well as the truth, or nearly
    "mask_iou": {"truth", "copy_source", "leak_paint", "saturate", "whiten", "add_grid"},
    "format": {"truth", "copy_source", "paint_elsewhere", "leak_paint", "saturate", "whiten", "add_grid"},
    "edit_accuracy": {"truth", "paint_everything", "paint_nothing", "paint_elsewhere"},
    "preservation": {
        "truth",
        "copy_source",
        "paint_everything",
        "paint_nothing",
        "paint_elsewhere",
        "leak_paint",
    },
}

RINGING = {
    "truth": set(),
    "copy_source": {"edits_fade"},
    "paint_everything": {"paint_grows"},
    "paint_nothing": {"paint_grows"},
    "paint_elsewhere": set(),  # no canary knows the right place; only rewards do
    "leak_paint": {"overlay_leaks"},
    "saturate": {"saturates", "whitens", "roughness_drifts"},
    "whiten": {"roughness_drifts"},
    "add_grid": {"roughness_drifts"},
}


@pytest.fixture(scope="module")
def policy() -> Pretrained:
    return load_pretrained(find_model("warm_start"))


@pytest.fixture(scope="module")
def batches(policy: Pretrained) -> dict[str, RewardBatch]:
    return try_reward.chains(policy, scenes.samples("val", range(48)), list(BEHAVIOURS))


@pytest.mark.parametrize("name", FOOLED)
def test_which_behaviours_fool_a_reward(name: str, batches: dict[str, RewardBatch]) -> None:
    everything = {"x_cot", "x_edit", *SAMPLE_FIELDS}
    reward = build_rewards({name: RewardConfig(type=name)}, everything)[name]
    means = {behaviour: valid_mean(reward.score(batch)) for behaviour, batch in batches.items()}
    assert {b for b, mean in means.items() if mean > means["truth"] - 0.1} == FOOLED[name]


@pytest.mark.parametrize("behaviour", RINGING)
def test_which_alarms_ring_for_a_policy_that_slides_into_it(
    behaviour: str, batches: dict[str, RewardBatch]
) -> None:
    rings = try_reward.slide(default_alarms(), batches["truth"], batches[behaviour])
    assert {ring.name for ring in rings} == RINGING[behaviour]


def test_the_picture_shows_every_sample_and_behaviour(batches: dict[str, RewardBatch]) -> None:
    few = {name: batches[name].rows(batches[name].group_B[:2]) for name in ("truth", "copy_source")}
    reward = build_rewards({"r": RewardConfig(type="edit_accuracy")}, {"x_edit", *SAMPLE_FIELDS})["r"]
    results = {name: reward.score(batch) for name, batch in few.items()}
    picture = try_reward.sheet(few, results)
    assert picture.width > 2 * 4 * 64
    assert picture.height > 2 * 2 * 64
    assert try_reward.score_table(results).row_count == 2


def test_what_the_model_draws_is_a_behaviour_too(policy: Pretrained) -> None:
    drawn = try_reward.chains(policy, scenes.samples("val", range(2)), ["model"])["model"]
    assert drawn.image("x_cot").shape == drawn.image("x_edit").shape == (2, 3, 64, 64)
    with pytest.raises(ConfigError, match="unknown behaviour 'modle': did you mean 'model'"):
        try_reward.chains(policy, scenes.samples("val", range(1)), ["modle"])
