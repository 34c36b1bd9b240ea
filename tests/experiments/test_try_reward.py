"""Planted behaviours against rewards, the scenes judge and the default alarms, on the shipped codec."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from experiments import try_reward
from gvcot.config import to_dict
from gvcot.data import scenes
from gvcot.data.source import SAMPLE_FIELDS
from gvcot.errors import ConfigError
from gvcot.model.pretrained import Pretrained, find_model, load_pretrained
from gvcot.types import RewardResult
from rewards.base import RewardBatch
from rewards.config import RewardConfig
from rewards.judge.config import EndpointConfig, JudgeConfig
from rewards.judge.reward import VLMJudge
from rewards.judge.scenes_server import running
from rewards.judge.serve_config import ScenesJudgeConfig
from rewards.planted import BEHAVIOURS
from rewards.registry import REWARDS, build_rewards
from rl.config import default_alarms
from rl.scoring import valid_mean

EDITS = {"copy_source", "leak_paint", "saturate", "whiten", "add_grid"}
"""Behaviours that paint the right region."""

PAINTS = {"paint_everything", "paint_nothing", "paint_elsewhere"}
"""Behaviours that draw the right edit."""

FOOLED = {
    # reward: behaviours that it likes as well as the truth, or nearly
    "mask_iou": EDITS,
    "box_iou": EDITS,
    "multi_region": EDITS,
    "soft_dice": EDITS,
    "format": EDITS | {"paint_elsewhere"},
    "edit_accuracy": PAINTS,
    "preservation": PAINTS | {"copy_source", "leak_paint"},
    "psnr": PAINTS | {"copy_source", "leak_paint"},
    "ssim": PAINTS | {"copy_source", "leak_paint"},
    "clip_image": PAINTS | {"copy_source", "leak_paint", "add_grid"},
    "clip_direction": PAINTS,
    "where": PAINTS | {"leak_paint", "add_grid"},
    "what_given_where": PAINTS,
    "x_cot_change_iou": {"leak_paint", "add_grid"},
}

JUDGE_FOOLED = {"sc": PAINTS, "pq": PAINTS | {"copy_source"}, "overall": PAINTS}
"""The same of the scenes judge's scores."""

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


def liked(means: dict[str, float], slack: float) -> set[str]:
    """Behaviours that score at most `slack` less than the truth."""
    return {name for name, mean in means.items() if mean > means["truth"] - slack} - {"truth"}


@pytest.mark.parametrize("name", FOOLED)
def test_which_behaviours_fool_a_reward(name: str, batches: dict[str, RewardBatch]) -> None:
    everything = {"x_cot", "x_edit", *SAMPLE_FIELDS}
    reward = build_rewards({name: RewardConfig(type=name)}, everything)[name]
    means = {behaviour: valid_mean(reward.score(batch)) for behaviour, batch in batches.items()}
    assert liked(means, 0.1) == FOOLED[name]


def test_every_reward_that_needs_nothing_more_is_tried() -> None:
    """lpips needs weights that aren't shipped, a judge a server."""
    assert set(REWARDS) - set(FOOLED) == {"lpips", "vlm_judge"}


@pytest.fixture(scope="module")
def judged(batches: dict[str, RewardBatch]) -> Iterator[dict[str, RewardResult]]:
    with running(ScenesJudgeConfig()) as url:
        endpoint = EndpointConfig(base_url=url, model="scenes-judge", send_metadata=True)
        judge = VLMJudge(**to_dict(JudgeConfig(endpoints=(endpoint,))))
        yield {behaviour: judge.score(batch) for behaviour, batch in batches.items()}
        judge.close()


@pytest.mark.parametrize("aspect", JUDGE_FOOLED)
def test_which_behaviours_fool_the_scenes_judge(aspect: str, judged: dict[str, RewardResult]) -> None:
    assert all(result.valid_B.all() for result in judged.values())
    scores = {
        behaviour: valid_mean(result) if aspect == "overall" else result.parts[aspect].mean().item() / 10
        for behaviour, result in judged.items()
    }
    assert liked(scores, 0.1) == JUDGE_FOOLED[aspect]


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
