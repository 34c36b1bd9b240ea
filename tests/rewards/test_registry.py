"""Building a recipe's rewards, one's own among them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from gvcot.errors import ConfigError
from rewards.base import Reward
from rewards.config import GateConfig, RewardConfig
from rewards.mix import score_all
from rewards.registry import REWARDS, build_rewards

EVERYTHING = {"x_cot", "x_edit", "mask", "change_mask", "target", "things", "region_caption"}

OWN = """
from rewards.base import Reward, result

class Brightness(Reward):
    name = "brightness"
    requires = frozenset({"x_edit"})
    reaches = "x_edit"

    def __init__(self, gain=1.0):
        self.gain = gain

    def score(self, batch):
        return result(self.gain * batch.image("x_edit").mean(dim=(1, 2, 3)))

class Unfinished(Reward):
    reaches = "x_edit"

    def score(self, batch):
        return result(batch.image("x_edit").mean(dim=(1, 2, 3)))

class NotAReward:
    pass
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "someones_lab.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "someones_lab"
    sys.modules.pop("someones_lab", None)


def test_every_built_in_reward_is_built_by_name():
    needed = {"vlm_judge": {"endpoints": [{"base_url": "http://localhost:1/v1", "model": "m"}]}}
    optional = {"lpips"}  # its package and weights need not be there: tests/rewards/test_perceptual.py
    names = [name for name in REWARDS if name not in optional]
    configs = {name: RewardConfig(type=name, options=needed.get(name, {})) for name in names}
    built = build_rewards(configs, EVERYTHING)
    assert list(built) == names
    for name, reward in built.items():
        assert isinstance(reward, Reward)
        assert reward.name == name
        assert reward.requires <= EVERYTHING


def test_ones_own_reward_is_named_by_module_and_class(own_module, make_batch, square):
    configs = {
        "dim": RewardConfig(type=f"{own_module}:Brightness"),
        "bright": RewardConfig(type=f"{own_module}:Brightness", options={"gain": 2.0}),
        "mask_iou": RewardConfig(type="mask_iou"),
    }
    results = score_all(build_rewards(configs, EVERYTHING), make_batch([square(2, 2, 6, 6)] * 3))
    assert {name: r.raw_B[0].item() for name, r in results.items()} == pytest.approx(
        {"dim": -0.2, "bright": -0.4, "mask_iou": 0.0}
    )


def test_tasks_and_gates_come_from_the_recipe():
    configs = {
        "some": RewardConfig(type="preservation", tasks=("color", "pose")),
        "all": RewardConfig(type="preservation", gate=GateConfig(reward="some", above=0.5)),
    }
    built = build_rewards(configs, EVERYTHING)
    assert built["some"].tasks == {"color", "pose"}
    assert built["all"].tasks is None
    with pytest.raises(ConfigError, match=r"rewards.all.gate.reward: there is no other reward 'some'"):
        build_rewards({"all": configs["all"]}, EVERYTHING)


@pytest.mark.parametrize("name", [name for name in REWARDS if name not in ("vlm_judge", "lpips")])
def test_a_sample_that_lacks_everything_costs_its_own_score_alone(name, make_batch, square):
    """Whatever is optional in a dataset is absent and no word is known, beside a good sample and alone. (The
    judge asks no more of a sample than an instruction; lpips, like ssim, where the outside is.)"""
    batch = make_batch([square(4, 4, 9, 9)] * 2)
    good = replace(batch.samples[0], region_caption="a red circle", instruction="remove the red circle")
    poor = replace(
        good,
        instruction="dye the zeppelin",
        region_caption="a zeppelin",
        target_HW3=None,
        change_mask_HW=None,
        things=(),
        referents=(),
    )
    reward = build_rewards({name: RewardConfig(type=name)}, EVERYTHING)[name]
    mixed = score_all({name: reward}, replace(batch, samples=[good, poor]))[name]
    alone = replace(batch.rows(torch.tensor([0])), samples=[poor], target_rt_B3HW=None)
    found = score_all({name: reward}, alone)[name]
    whole = score_all({name: reward}, replace(batch, samples=[good, good]))[name]
    needs_more = bool(reward.requires - {"x_cot", "x_edit", "mask"})
    assert found.raw_B.isfinite().all()
    assert mixed.valid_B.tolist() == [whole.valid_B[0].item(), whole.valid_B[1].item() and not needs_more]
    assert mixed.raw_B[0] == pytest.approx(whole.raw_B[0].item(), abs=1e-5)
    assert found.valid_B.tolist() == mixed.valid_B[1:].tolist()


def test_options_reach_the_reward():
    built = build_rewards({"p": RewardConfig(type="preservation", options={"tau": 0.5})}, EVERYTHING)
    assert built["p"].tau == 0.5


def test_reaches_can_be_overridden_for_one_recipe_only():
    configs = {
        "a": RewardConfig(type="preservation", reaches="x_cot"),
        "b": RewardConfig(type="preservation"),
    }
    built = build_rewards(configs, EVERYTHING)
    assert built["a"].reaches == "x_cot"
    assert built["b"].reaches == "x_edit"


def test_wrong_recipes_are_refused(own_module):
    def build(provides=EVERYTHING, **fields):
        return build_rewards({"mine": RewardConfig(**fields)}, provides)

    with pytest.raises(ConfigError, match="did you mean 'mask_iou'"):
        build(type="mask_iuo")
    with pytest.raises(ConfigError, match="cannot import"):
        build(type="no.such.module:Thing")
    with pytest.raises(ConfigError, match="not a subclass of rewards.base.Reward"):
        build(type=f"{own_module}:NotAReward")
    with pytest.raises(ConfigError, match=r"rewards.mine.options: .*'tao'.*accepts: tau"):
        build(type="preservation", options={"tao": 1})
    with pytest.raises(ConfigError, match="tau is -1"):
        build(type="preservation", options={"tau": -1})
    with pytest.raises(ConfigError, match=r"mine: mask_iou needs x_cot.*choose a chain"):
        build(type="mask_iou", provides={"x_edit", "mask"})
    with pytest.raises(ConfigError, match="needs change_mask, target"):
        build(type="edit_accuracy", provides={"x_cot", "x_edit", "mask"})
    with pytest.raises(ConfigError, match="no phase 'x_edti'"):
        build(type="preservation", reaches="x_edti")
    with pytest.raises(ConfigError, match="no phase 'mask'; name one that it draws: x_cot, x_edit"):
        build(type="preservation", reaches="mask")
    with pytest.raises(ConfigError, match="sets no `requires`"):
        build(type=f"{own_module}:Unfinished")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_wrong_weights_are_refused(weight):
    with pytest.raises(ConfigError, match="expected a finite number >= 0"):
        RewardConfig(type="mask_iou", weight=weight)


def test_recipes_are_read_without_torch():
    code = "import sys, rewards.config, rewards.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
