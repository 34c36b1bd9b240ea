from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.cli import main
from experiments.learned_judge.config import DataConfig, LearnedJudgeConfig, NetworkConfig
from experiments.learned_judge.data import Pairs
from experiments.learned_judge.hints import facts, where_meant, where_point
from experiments.learned_judge.model import LearnedJudge, find_judge, load_judge, scores_of
from experiments.learned_judge.train import Batches, State, new_state, restore, save, training_step
from gvcot.config import load, recipe_names
from gvcot.errors import CheckpointError, ConfigError
from gvcot.run_dir import RunDir


@pytest.fixture
def config(network: NetworkConfig, data: DataConfig) -> LearnedJudgeConfig:
    return LearnedJudgeConfig(
        name="test",
        network=network,
        data=data,
        val=data,
        steps=40,
        warmup_steps=5,
        scenes_per_step=4,
        edits_per_scene=3,
    )


def steps(config: LearnedJudgeConfig, pairs: Pairs, state: State, until: int) -> list[dict[str, float]]:
    batches = Batches(config, pairs, state.judge)
    logged = []
    while state.step < until:
        logged.append(training_step(config, batches.batch(state.step), state))
    return logged


def test_every_part_of_the_loss_falls_within_some_steps(config: LearnedJudgeConfig, pairs: Pairs) -> None:
    state = new_state(config, pairs)
    logged = steps(config, pairs, state, config.steps)
    for part in ("sc", "pq", "seeing", "measuring", "pointing"):
        first, last = (
            np.mean([line[f"learned_judge/{part}"] for line in lines]) for lines in (logged[:3], logged[-5:])
        )
        assert last < (0.99 if part == "pointing" else 0.7) * first, part


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    config: LearnedJudgeConfig, pairs: Pairs, tmp_path: Path
) -> None:
    whole, begun, resumed = (new_state(config, pairs) for _ in range(3))
    steps(config, pairs, whole, 4)
    steps(config, pairs, begun, 2)
    run = RunDir.open(tmp_path / "run", config)
    save(run, begun)
    restore(run, resumed)
    assert resumed.step == 2
    steps(config, pairs, resumed, 4)
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, resumed.parameters[name]), name


def test_a_saved_judge_says_the_same_to_the_last_bit(
    judge: LearnedJudge, pairs: Pairs, tmp_path: Path
) -> None:
    judge.save(tmp_path, {"made": "here"})
    again, record = load_judge(tmp_path)
    assert record == {"made": "here"}
    np.testing.assert_array_equal(scores_of(again, pairs), scores_of(judge, pairs))
    served = json.loads((tmp_path / "processor_config.json").read_text())
    assert served["image_processor"]["size"] == {"longest_edge": 4096, "shortest_edge": 4096}
    assert (tmp_path / "model.safetensors").is_file()


def test_the_command_trains_and_compares(
    config: LearnedJudgeConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    network = [
        f"network.{key}={getattr(config.network, key)}"
        for key in ("width", "heads", "mlp", "layers", "vocab")
    ]
    edits = [f"{part}.cache_dir={config.data.cache_dir}" for part in ("data", "val")]
    edits += [f"{part}.num_scenes=16" for part in ("data", "val")]
    few = ["steps=2", "save_every=1", "log_every=1", "data.split=val", "data.first_scene=0"]
    command = ["judge", "train", "learned", *network, *edits, *few, "--run-dir", str(tmp_path / "run")]
    for _ in range(2):  # the second time there is nothing left to do
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert not ended.value.code
        assert "drawn/overall" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"learned_judge/sc", "time/cpu_seconds_per_step"} <= lines[0].keys()
    record = json.loads((find_judge(tmp_path / "run") / "learned_judge.json").read_text())
    assert record["agreement"]["sc"]["num"] == 96
    assert record["config"]["steps"] == 2
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["judge", "agreement", "run", "--count", "2"])
    assert not ended.value.code
    output = capsys.readouterr().out
    assert "auc" in output
    assert "judged_sc" in output


def test_shipped_judges_can_be_trained_and_the_weak_one_is_the_same_but_shorter() -> None:
    shipped = {name: load(LearnedJudgeConfig, name) for name in recipe_names("judge-train")}
    good, weak = shipped["judge-train/learned"], shipped["judge-train/learned-weak"]
    assert weak.steps < good.steps
    assert replace(weak, steps=good.steps, name=good.name) == good
    assert good.val.split == "val"


def test_what_is_no_judge_or_can_not_be_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no learned judge"):
        find_judge(tmp_path)
    with pytest.raises(ConfigError, match="network.width is 100"):
        load(LearnedJudgeConfig, "judge-train/learned", ["network.width=100"])
    with pytest.raises(ConfigError, match="network.image_side is 60"):
        load(LearnedJudgeConfig, "judge-train/learned", ["network.image_side=60"])


def test_hints_by_hand() -> None:
    before_1HW3 = np.zeros((1, 4, 4, 3), np.uint8)
    after_1HW3 = before_1HW3.copy()
    after_1HW3[0, :2, 2:] = 255  # the upper right piece
    change_1C, rough_1C = facts(before_1HW3, after_1HW3, 2).unbind(-1)
    assert change_1C[0].tolist() == pytest.approx([0, np.log(51) / 4, 0, 0])
    # each piece has 4 pixels; of the upper left one 2 have an edge at their right, of the upper right one
    # 2 have one below; squares count half, since there are two directions
    edge = np.log1p(50 * np.sqrt(2 / 4 / 2)) / 4
    assert rough_1C[0].tolist() == pytest.approx([edge, edge, 0, 0])
    mask_1HW = np.zeros((1, 4, 4), bool)
    mask_1HW[0, 0, :2] = mask_1HW[0, 2, 2] = True
    assert where_meant(mask_1HW, 2).tolist() == [pytest.approx([2 / 3, 0, 0, 1 / 3])]
    assert where_point(np.array([[17, 3]]), 2).tolist() == [[0, 1, 0, 0]]
