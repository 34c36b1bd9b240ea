"""Whole sweeps: real runs of a very small model side by side, interrupted, resumed and failing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from experiments import cli
from gvcot.model.pretrained import find_model, load_pretrained
from gvcot.tracking import read_metrics

pytestmark = pytest.mark.slow

STEPS = 8
"""Of which two are taken before the interruption, with room until the run is done."""


def recipe(folder: Path, **settings: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "test", "seeds": [0, 1]} | settings))
    return path


def rl_recipe(folder: Path, policy_folder: Path) -> Path:
    common = {
        "model": str(policy_folder),
        "steps": STEPS,
        "prompts_per_step": 2,
        "group_size": 3,
        "rollout": {"num_steps": 2, "window_range": [0, 2]},
        "eval": {"num_samples": 4, "every": 0},
        "cluster": {"num_workers": 1},
        "max_missing_share": 1.0,  # a random codec hides some of the smallest edits
    }
    arms = {"plain": [], "no-format": ["rewards.format=null"]}
    return recipe(
        folder,
        command="rl",
        recipe="rl/tiny",
        common=common,
        arms=arms,
        metric=["eval/mask_iou"],
        max_concurrent=2,
    )


def training_steps(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run) if "policy/loss" in line]


def trial_processes(root: Path) -> list[psutil.Process]:
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if "experiments.sweep_trial" in (p.info["cmdline"] or []) and str(root) in " ".join(p.info["cmdline"])
    ]


def wait_for(condition: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def test_an_interrupted_sweep_goes_on_and_ends_with_its_results(
    policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "sweep"
    command = ["sweep", "run", str(rl_recipe(tmp_path, policy_folder)), "--run-dir", str(root)]
    first = root / "plain-seed0"
    with subprocess.Popen([sys.executable, "-m", "experiments.cli", *command]) as process:
        wait_for(lambda: 2 in training_steps(first), 300)
        held = trial_processes(first)
        for trial in held:
            trial.suspend()  # or it could be done, on fast cores, before the other one has begun
        other = root / "no-format-seed0"
        wait_for((other / "config.yaml").is_file, 120)  # beside the first one
        assert {p.nice() for p in trial_processes(root)} == {psutil.Process().nice()}
        process.send_signal(signal.SIGINT)
        for trial in held:
            trial.resume()
        assert process.wait(timeout=120) == 1
    wait_for(lambda: not trial_processes(root), 60)
    before = read_metrics(first)
    assert json.loads((root / "trials" / "plain-seed0.json").read_text())["state"] == "running"

    with pytest.raises(SystemExit) as exit_info:
        cli.main(command)
    assert not exit_info.value.code
    runs = [root / f"{arm}-seed{seed}" for arm in ("plain", "no-format") for seed in (0, 1)]
    for run in runs:
        assert training_steps(run) == list(range(1, STEPS + 1))
        assert load_pretrained(find_model(run)).model is not None
        assert (run / "report.html").is_file()
    assert read_metrics(first)[:2] == before[:2]  # its first steps were not taken again
    assert len(json.loads((first / "provenance.json").read_text())["resumes"]) == 1

    results = json.loads((root / "results.json").read_text())
    evaluated = [
        json.loads((run / "evals" / f"val.step_{STEPS}.json").read_text())["metrics"]["mask_iou"]
        for run in runs
    ]
    found = [
        results["arms"][arm]["metrics"]["eval/mask_iou"]["by_seed"][seed]
        for arm in ("plain", "no-format")
        for seed in ("0", "1")
    ]
    assert found == pytest.approx(evaluated)
    assert (root / "tb" / "arms" / "plain" / "mean").is_dir()

    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        cli.main(command)
    assert not exit_info.value.code
    assert "4 trials, 4 of them finished before" in capsys.readouterr().out


def test_an_arm_that_fails_is_told_and_the_others_go_on(
    policy_folder: Path, cache_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {
        "codec": str(policy_folder),
        "init": str(policy_folder),
        "steps": 2,
        "batch_size": 2,
        "workers": 1,
        "threads": 1,
        "data": {"num_samples": 8, "cache_dir": cache_dir},
        "eval": {"num_samples": 3, "num_steps": 1},
    }
    arms = {"lost": [f"init={tmp_path / 'nowhere'}"], "fine": []}
    path = recipe(
        tmp_path,
        command="sft",
        recipe="sft/tiny-stage2",
        common=common,
        arms=arms,
        seeds=[0],
        metric=["eval/mask_iou", "sft/loss"],
    )
    root = tmp_path / "sweep"
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["sweep", "run", str(path), "--run-dir", str(root)])
    assert exit_info.value.code == 1
    assert "nowhere' holds no model" in capsys.readouterr().out
    arms = json.loads((root / "results.json").read_text())["arms"]
    assert arms["lost"]["trials"]["0"]["state"] == "failed"
    assert "CheckpointError" in arms["lost"]["trials"]["0"]["error"]
    assert arms["fine"]["trials"]["0"]["state"] == "done"
    assert arms["fine"]["metrics"]["sft/loss"]["mean"] > 0


def test_a_sweep_that_asks_for_more_than_the_machine_has_is_refused(
    policy_folder: Path, tmp_path: Path
) -> None:
    path = rl_recipe(tmp_path, policy_folder)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["sweep", "run", str(path), "cpus_per_trial=4096", "--run-dir", str(tmp_path / "sweep")])
    assert exit_info.value.code == 2
