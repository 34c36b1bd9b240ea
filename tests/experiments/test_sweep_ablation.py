"""Which runs a reward ablation is made of, and what it says at its end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from experiments import cli
from experiments.ablation import ablation, run_ablation, scoring_seconds
from experiments.sweep import SWEEP_FILE
from experiments.sweep_config import SweepConfig, plan
from experiments.sweep_report import scoring_table
from experiments.sweep_results import SCORING_FILE, collect
from experiments.sweep_trial import Record, write_record
from gvcot.config import dump, load
from gvcot.errors import ConfigError
from rewards.registry import REWARDS
from rl.config import RLConfig


def runs_of(config: SweepConfig) -> dict[str, RLConfig]:
    runs = {trial.arm: run for trial, run in plan(config)}
    return {arm: run for arm, run in runs.items() if isinstance(run, RLConfig)}


def weights(config: SweepConfig) -> dict[str, dict[str, float]]:
    return {arm: {name: r.weight for name, r in run.rewards.items()} for arm, run in runs_of(config).items()}


def two_rewards(*overrides: str) -> SweepConfig:
    plain = ["rewards.preservation=null", "rewards.format=null"]
    return ablation("rl/tiny", [*plain, *overrides], seeds=[0])


def test_each_reward_is_tried_alone_and_left_out() -> None:
    config = ablation("rl/tiny", ["rewards.format.weight=0", "steps=3"], seeds=[0, 4])
    whole = {"mask_iou": 2.0, "edit_accuracy": 1.0, "preservation": 1.0, "format": 0.0}
    nothing = dict.fromkeys(whole, 0.0)
    assert weights(config) == {
        "all": whole,
        **{f"only-{n}": nothing | {n: w} for n, w in whole.items() if w},
        **{f"without-{n}": whole | {n: 0.0} for n, w in whole.items() if w},
        "gated": whole,
        "summed": whole,
    }
    assert {(run.seed, run.steps) for _, run in plan(config) if isinstance(run, RLConfig)} == {(0, 3), (4, 3)}
    assert config.metric == ("eval/mask_iou", "eval/edit_accuracy", "eval/preservation")
    own = {(c.metric, c.against) for c in config.compare if c.arm == "all"}
    assert own == {(f"eval/{n}", f"without-{n}") for n in ("mask_iou", "edit_accuracy", "preservation")}
    ways = {(c.arm, c.against) for c in config.compare if c.arm != "all"}
    assert ways == {("gated", "all"), ("summed", "all"), ("gated", "summed")}


def test_easy_rewards_are_gated_by_hard_ones_and_rewards_are_summed() -> None:
    runs = runs_of(ablation("rl/tiny", [], seeds=[0]))
    gates = {n: r.gate and (r.gate.reward, r.gate.above) for n, r in runs["gated"].rewards.items()}
    assert gates == {
        "mask_iou": None,
        "edit_accuracy": None,
        "preservation": ("edit_accuracy", 0.0),
        "format": ("mask_iou", 0.25),
    }
    assert all(r.gate is None for r in runs["all"].rewards.values())
    assert {
        arm: run.advantage.normalize for arm, run in runs.items() if run.advantage.normalize != "component"
    } == {"summed": "sum"}


def test_a_recipe_s_own_gates_stay() -> None:
    gate = "rewards.preservation.gate={reward: mask_iou, above: 0.9}"
    runs = runs_of(ablation("rl/tiny", [gate], seeds=[0]))
    for arm in ("all", "gated", "without-format"):
        found = runs[arm].rewards["preservation"].gate
        assert found is not None
        assert (found.reward, found.above) == ("mask_iou", 0.9)


def test_no_two_arms_are_the_same_run() -> None:
    config = two_rewards("advantage.normalize=sum")  # "all" is summed already, and nothing can be gated
    assert list(config.arms) == ["all", "only-mask_iou", "only-edit_accuracy"]
    assert [(c.metric, c.arm, c.against) for c in config.compare] == [
        ("eval/mask_iou", "all", "only-edit_accuracy"),
        ("eval/edit_accuracy", "all", "only-mask_iou"),
    ]


def test_a_single_reward_cannot_be_ablated() -> None:
    with pytest.raises(ConfigError, match="needs at least two rewards"):
        two_rewards("rewards.edit_accuracy=null")


def test_a_dry_run_names_all_arms(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["sweep", "ablate-rewards", "tiny", "steps=5", "--seed", "1", "--seed", "2", "--dry-run"])
    assert not exit_info.value.code
    commands = [line for line in capsys.readouterr().out.splitlines() if ": gvcot rl rl/tiny steps=5" in line]
    assert len(commands) == 2 * 11
    assert commands[0].startswith("all-seed1: ")


OWN = """
from rewards.base import Reward, result

class Connected(Reward):
    name = "connected"
    requires = frozenset({"x_edit"})
    reaches = "x_edit"
    is_open = False

    def start(self):
        self.is_open = True

    def score(self, batch):
        assert self.is_open
        return result(batch.image("x_edit").mean(dim=(1, 2, 3)))
"""


def small(policy_folder: Path) -> list[str]:
    return [f"model={policy_folder}", "prompts_per_step=2", "group_size=2", "data.seed=3"]


def test_scoring_is_timed_for_every_reward(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the recipe, the other built-in ones that need nothing more, and one that has to be started."""
    (tmp_path / "own_rewards.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    added = {name: name for name in REWARDS if name not in ("lpips", "vlm_judge")}
    added |= {"own": "own_rewards:Connected"}
    overrides = [f"rewards.{name}.type={kind}" for name, kind in added.items()]
    config = load(RLConfig, "rl/tiny", [*small(policy_folder), *overrides])
    seconds = scoring_seconds(config, repeats=1)
    assert set(seconds) == {*REWARDS, "own"} - {"lpips", "vlm_judge"}
    assert all(0 < value < math.inf for value in seconds.values())


def test_what_scoring_takes_is_measured_once_and_reported(
    policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an ablation whose runs have ended already, with steps of two seconds."""
    monkeypatch.setenv("COLUMNS", "200")
    config = two_rewards(*small(policy_folder))
    for trial, run in plan(config):
        folder = tmp_path / trial.name
        folder.mkdir()
        (folder / "config.yaml").write_text(dump(run))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "time/step": 2.0}) + "\n")
        write_record(tmp_path, trial.name, Record(state="done", seconds=60.0))
    (tmp_path / SWEEP_FILE).write_text(dump(config))
    assert run_ablation(config, tmp_path)
    seconds = json.loads((tmp_path / SCORING_FILE).read_text())
    assert list(seconds) == ["mask_iou", "edit_accuracy"]
    assert all(0 < value < math.inf for value in seconds.values())
    rows = [[name, f"{1000 * s:.1f}", f"{s / 2.0:.2%}"] for name, s in seconds.items()]
    assert scoring_table(collect(config, tmp_path)).rows == rows
    printed, page = capsys.readouterr().out, (tmp_path / "report.html").read_text()
    for text in ("what scoring takes", *rows[0], *rows[1]):
        assert text in printed
        assert text in page
    assert run_ablation(config, tmp_path)
    assert json.loads((tmp_path / SCORING_FILE).read_text()) == seconds
