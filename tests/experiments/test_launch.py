"""From a recipe to a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from experiments.launch import run_eval, run_rl, run_sft
from experiments.quickstart import fresh_folder
from gvcot.config import load, recipe_names
from gvcot.errors import CheckpointError, ConfigError
from gvcot.model.pretrained import ASSETS, WARM_START, find_model
from sft.config import EvalConfig, SFTConfig


def dry(run: Callable[..., object], recipe: str, *overrides: str) -> None:
    assert run(recipe, list(overrides), resume="auto", dry_run=True, run_dir=None) is None


TRAINING = [(run, name) for kind, run in (("sft", run_sft), ("rl", run_rl)) for name in recipe_names(kind)]


@pytest.mark.parametrize(("run", "recipe"), TRAINING)
def test_a_dry_run_prints_the_whole_configuration(
    capsys: pytest.CaptureFixture[str], run: Callable[..., object], recipe: str
) -> None:
    dry(run, recipe, "steps=7")
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["steps"] == 7
    assert shown["seed"] == 0  # a default that the recipe doesn't name


@pytest.mark.parametrize(("run", "recipe"), [(run_rl, "rl/tiny"), (run_sft, "sft/tiny-codec")])
def test_what_a_launcher_cannot_start_is_refused(
    run: Callable[..., object], recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("TORCHELASTIC_RUN_ID", "x")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="start it without a launcher"):
        run(recipe, [], resume="auto", dry_run=False, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    dry(run_rl, "rl/tiny")
    assert run_eval(WARM_START, ["num_samples=3"], split="val", dry_run=True) is None
    assert "num_samples: 3" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("run", "recipe", "override", "hint"),
    [
        (run_rl, "rl/tiny", "gruop_size=4", "did you mean 'group_size'"),
        (run_rl, "rl/tiny", "rollout.noise_levle=0.5", "did you mean 'noise_level'"),
        (run_sft, "sft/tiny-stage1", "stepz=3", "did you mean 'steps'"),
        (run_sft, "sft/tiny-codec", "widht=8", "did you mean 'width'"),
    ],
)
def test_an_unknown_key_is_answered_with_the_closest(
    run: Callable[..., object], recipe: str, override: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=hint):
        dry(run, recipe, override)


def test_an_unknown_recipe_is_answered_with_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rl/tiny'"):
        dry(run_rl, "rl/tinny")


def test_recipes_in_folders_have_names_and_what_they_share_has_none() -> None:
    assert "sft/arms/gvcot" in recipe_names("sft")
    assert not any("base" in name.split("/") for name in recipe_names())
    with pytest.raises(ConfigError, match="did you mean 'sft/arms/gvcot'"):
        dry(run_sft, "sft/arms/gvctt")


def test_the_arms_differ_in_nothing_but_what_is_drawn() -> None:
    arms = {name: load(SFTConfig, name) for name in recipe_names() if name.startswith("sft/arms/")}
    assert len(arms) == 5
    plain = {"name": "", "mix": {"": 1.0}, "batch_size": 1, "eval": EvalConfig()}
    assert len({repr(replace(arm, **plain)) for arm in arms.values()}) == 1
    assert len({repr(replace(arm.eval, chain="")) for arm in arms.values()}) == 1
    for arm in arms.values():
        assert arm.batch_size * arm.mix[arm.eval.chain] == 32  # edits a step


def test_a_model_is_named_by_itself_by_its_run_or_as_the_shipped_one(policy_folder: Path) -> None:
    assert find_model(policy_folder) == policy_folder
    assert find_model(str(policy_folder)) == policy_folder
    run = policy_folder.parent / "run"
    run.mkdir(exist_ok=True)
    if not (run / "final").exists():
        (run / "final").symlink_to(policy_folder)
    assert find_model(run) == run / "final"
    assert find_model(WARM_START) == ASSETS / "warm_start"


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=rf"{name.name}'? holds no model"):
            find_model(name)


def test_a_model_is_evaluated_on_a_split(
    policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["num_samples=4", "num_steps=[1,2]", f"out={tmp_path}", "threads=1"]
    metrics = run_eval(policy_folder, overrides, split="val", dry_run=False)
    assert metrics is not None
    assert sorted(metrics) == ["val-1steps", "val-2steps"]
    assert "mask_iou" in capsys.readouterr().out
    record = json.loads((tmp_path / "evals" / "val-2steps.step_0.json").read_text())
    assert record["samples"]["id"] == [f"scenes/val/0/{i}" for i in range(4)]
    assert len(record["samples"]["values"]["mask_iou"]) == 4
    assert record["metrics"]["mask_iou"] == pytest.approx(metrics["val-2steps"]["mask_iou"])
    assert (tmp_path / "evals" / "val-2steps.png").read_bytes().startswith(b"\x89PNG")


def test_a_weight_for_a_phase_that_the_chain_lacks_is_refused(policy_folder: Path, tmp_path: Path) -> None:
    overrides = [f"model={policy_folder}", "advantage.phase_weights={x_edti: 0}"]
    with pytest.raises(ConfigError, match=r"no phase 'x_edti'; did you mean 'x_edit'"):
        run_rl("rl/tiny", overrides, resume="auto", dry_run=False, run_dir=tmp_path / "run")


def test_several_draws_per_scene_are_averaged(policy_folder: Path, tmp_path: Path) -> None:
    def scores(name: str, *overrides: str) -> list[float]:
        plain = ["num_samples=3", "num_steps=[1]", f"out={tmp_path / name}", "threads=1", "probes=[]"]
        run_eval(policy_folder, [*plain, *overrides], split="val", dry_run=False)
        content = json.loads((tmp_path / name / "evals" / "val-1steps.step_0.json").read_text())
        return content["samples"]["values"]["preservation"]

    both, fifth, sixth = (
        scores(n, *o) for n, o in (("b", ("seed=5", "draws=2")), ("f", ("seed=5",)), ("s", ("seed=6",)))
    )
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(fifth, sixth, strict=True)], abs=2e-5)
    with pytest.raises(ConfigError, match="draws: expected at least 1"):
        run_eval(policy_folder, ["draws=0"], split="val", dry_run=True)


def test_a_finished_stage_has_weights_metrics_pictures_and_a_report(
    policy_folder: Path, cache_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        f"codec={policy_folder}",
        f"init={policy_folder}",
        "steps=2",
        "batch_size=2",
        "threads=1",
        "data.num_samples=8",
        f"data.cache_dir={cache_dir}",
        "eval.num_samples=3",
        "eval.num_steps=1",
    ]
    run = run_sft("sft/tiny-stage2", overrides, resume="auto", dry_run=False, run_dir=tmp_path / "run")
    assert run == tmp_path / "run"
    assert "report:" in capsys.readouterr().out
    assert find_model(run) == run / "final"
    assert (run / "report.html").stat().st_size > 1000
    assert (run / "images" / "eval-val.step_2.png").is_file()
    assert (run / "evals" / "val.step_2.json").is_file()


@pytest.mark.parametrize("arm", ["direct-mask", "edit-first", "blank"])
def test_every_arm_is_trained_and_measured_alike(
    policy_folder: Path, cache_dir: str, tmp_path: Path, arm: str
) -> None:
    overrides = [
        f"codec={policy_folder}",
        f"init={policy_folder}",
        "steps=1",
        "batch_size=2",
        "threads=1",
        "data.num_samples=8",
        f"data.cache_dir={cache_dir}",
        "eval.num_samples=3",
        "eval.num_steps=1",
    ]
    run = run_sft(f"sft/arms/{arm}", overrides, resume="auto", dry_run=False, run_dir=tmp_path / "run")
    assert run is not None
    measured = json.loads((run / "evals" / "val.step_1.json").read_text())["samples"]["values"]
    assert {"where", "what_given_where", "edit_accuracy", "preservation"} <= set(measured)
    assert ("x_cot_change_iou" in measured) == (arm != "direct-mask")


def test_a_quickstart_never_reuses_a_folder(tmp_path: Path) -> None:
    assert fresh_folder(tmp_path).name == "quickstart-1"
    for number in (1, 2):
        (tmp_path / f"quickstart-{number}").mkdir()
    assert fresh_folder(tmp_path).name == "quickstart-3"
