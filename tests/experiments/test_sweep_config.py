"""Which runs a sweep stands for, and what is refused before any of them starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from experiments import cli
from experiments.sweep_config import (
    SweepConfig,
    arms_of,
    as_override,
    cpus_reserved,
    plan,
    trials,
)
from gvcot.config import decode, load, parse, recipe_names
from gvcot.errors import ConfigError
from rl.config import RLConfig


def sweep(**changes: Any) -> SweepConfig:
    plain: dict[str, Any] = {
        "name": "test",
        "command": "rl",
        "recipe": "rl/tiny",
        "metric": ["eval/mask_iou"],
    }
    return decode(SweepConfig, plain | changes)


def runs_of(config: SweepConfig) -> dict[str, RLConfig]:
    return {trial.name: run for trial, run in plan(config) if isinstance(run, RLConfig)}


def test_every_arm_is_run_with_every_seed() -> None:
    config = sweep(arms={"plain": [], "fast": ["optim.lr=1e-3"]}, seeds=[3, 5], common={"steps": 7})
    assert [t.name for t in trials(config)] == ["plain-seed3", "fast-seed3", "plain-seed5", "fast-seed5"]
    runs = runs_of(config)
    assert {(run.steps, run.seed, run.name) for run in runs.values()} == {
        (7, seed, f"{arm}-seed{seed}") for arm in ("plain", "fast") for seed in (3, 5)
    }
    assert runs["fast-seed5"].optim.lr == 1e-3
    assert runs["plain-seed5"].optim.lr == 2e-4


def test_a_grid_is_every_combination_named_after_its_values() -> None:
    config = sweep(grid={"optim.lr": [1e-4, 0.002], "rollout": {"window_range": [[0, 4], [1, 3]]}})
    runs = {trial.arm: runs_of(config)[trial.name] for trial in trials(config)}
    assert list(runs) == [
        "lr=0.0001,window_range=0-4",
        "lr=0.0001,window_range=1-3",
        "lr=0.002,window_range=0-4",
        "lr=0.002,window_range=1-3",
    ]
    assert runs["lr=0.002,window_range=1-3"].optim.lr == 0.002
    assert runs["lr=0.002,window_range=1-3"].rollout.window_range == (1, 3)


def test_keys_that_end_alike_keep_their_whole_names() -> None:
    grid = {"rewards.mask_iou.weight": [0, 1], "rewards.format.weight": [0.5]}
    assert list(arms_of(sweep(grid=grid))) == [
        "rewards.mask_iou.weight=0,rewards.format.weight=0.5",
        "rewards.mask_iou.weight=1,rewards.format.weight=0.5",
    ]


def test_a_grid_can_be_changed_on_the_command_line() -> None:
    config = load(SweepConfig, "sweep/tiny-lr", ["grid.optim.lr=[0.5]", "common.eval.every=3", "seeds=[4]"])
    runs = list(runs_of(config).values())
    assert [(run.optim.lr, run.loss.kl_coef) for run in runs] == [(0.5, 0.03), (0.5, 0.1)]
    assert {(run.eval.every, run.steps, run.seed) for run in runs} == {(3, 100, 4)}


@given(
    st.one_of(
        st.booleans(),
        st.none(),
        st.integers(-(10**9), 10**9),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(["on", "1e-3", "null", "a b", "x: [y", "", "it's", 'q"']),
        st.lists(st.floats(-1, 1)),
    )
)
def test_a_value_survives_the_way_to_a_trial_s_command_line(value: Any) -> None:
    assert parse(dict, [as_override("a.b", value)]) == {"a": {"b": value}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "either arms .* or a grid"),
        ({"arms": {"a": []}, "grid": {"steps": [1]}}, "either arms .* or a grid"),
        ({"arms": {"a": []}, "seeds": [1, 1]}, r"seeds: .* each once; got \[1, 1\]"),
        ({"arms": {"a": []}, "metric": []}, "metric: expected at least one"),
        ({"arms": {"a": []}, "max_concurrent": 0}, "max_concurrent: expected at least 1, or null; got 0"),
        ({"grid": {"steps": 3}}, r"grid.steps: expected a list of values, such as \[1, 2\]; got 3"),
        ({"grid": {"steps": []}}, "grid.steps: expected a list"),
        ({"grid": {"optim.lr": [1e-4, 0.0001]}}, "2 arms would be called 'lr=0.0001'; give each value once"),
        ({"arms": {"../up": []}}, "'../up' can't name a folder"),
        ({"arms": {"a": ["seed=3"]}}, "a: seed=3: the sweep sets a trial's name and seed; use seeds"),
        ({"arms": {"a": []}, "common": {"name": "x"}}, "common: name=.*use seeds"),
        (
            {"arms": {"plain": []}, "compare": [{"metric": "eval/x", "arm": "plian", "against": "plain"}]},
            "no arm 'plian'; did you mean 'plain'",
        ),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(**changes)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("gruop_size=4", "arm wrong: unknown key 'gruop_size'.*did you mean 'group_size'"),
        ("group_size=1", "arm wrong: group_size: a group needs at least 2"),
        ("cluster.num_workers=3", "arm wrong: its workers use 3 CPUs, but cpus_per_trial=2"),
    ],
)
def test_a_wrong_arm_is_refused_before_any_trial_starts(tmp_path: Path, arm: str, message: str) -> None:
    from experiments.sweep import run_sweep

    config = sweep(arms={"right": [], "wrong": [arm]}, cpus_per_trial=2, common={"prompts_per_step": 6})
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match=message):
            run_sweep(config, tmp_path / "sweep", dry_run=dry_run)
    assert not (tmp_path / "sweep").exists()


def test_a_trial_reserves_the_cpus_of_all_its_workers() -> None:
    def reserved(*overrides: str, **changes: Any) -> int:
        config = sweep(arms={"a": list(overrides)}, **changes)
        return cpus_reserved(config, plan(config)[0][1])

    assert reserved("cluster.cpus_per_worker=3") == 6
    scorers = ("reward_workers.num_workers=3", "reward_workers.cpus_per_worker=0.5")
    assert reserved(*scorers, "reward_workers.chunks=3") == 4
    assert reserved("cluster.address=somewhere:6379") == 1
    assert reserved("cluster.num_workers=1", cpus_per_trial=4) == 4
    stage = {"command": "sft", "recipe": "sft/tiny-stage2"}
    assert reserved("workers=2", "threads=3", **stage) == 6
    assert reserved("workers=2", "threads=0", cpus_per_trial=5, **stage) == 5


@pytest.mark.parametrize("recipe", recipe_names("sweep"))
def test_shipped_sweeps_are_valid(recipe: str) -> None:
    assert len(plan(load(SweepConfig, recipe))) > 1


def test_a_dry_run_prints_commands_that_can_be_given_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["sweep", "run", "tiny-objectives", "seeds=[0]", "--dry-run"])
    assert not exit_info.value.code
    shown, _, commands = capsys.readouterr().out.partition("\n\n")
    assert "shuffled-seed0: gvcot rl rl/tiny steps=100" in f"{shown}\n{commands}"
    assert not list(tmp_path.iterdir())


def test_what_is_written_down_reads_back() -> None:
    from gvcot.config import dump

    config = load(SweepConfig, "sweep/tiny-objectives")
    assert decode(SweepConfig, yaml.safe_load(dump(config))) == config
