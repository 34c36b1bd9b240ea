from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from gvcot.errors import CheckpointError, ConfigError
from gvcot.run_dir import RunDir
from sft.config import CodecTrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    lr: float = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    steps: int = 10
    log_every: int = 5
    group_size: int = 4
    optim: Optim = field(default_factory=Optim)


def save(run: RunDir, step: int, text: str = "weights", keep: int = 2) -> None:
    with run.save_checkpoint(step, keep=keep) as folder:
        (folder / "shard").mkdir()
        (folder / "shard" / "model.safetensors").write_text(text)


def test_a_new_run_records_its_config_and_where_it_came_from(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "runs" / "a", Run(), seed=7)
    assert not run.resumed
    assert run.latest_checkpoint() is None
    assert run.resume_step == 0
    assert "group_size: 4" in (run.path / "config.yaml").read_text()
    record = json.loads((run.path / "provenance.json").read_text())
    assert record["seed"] == 7
    assert record["num_cpus"] >= 1
    assert record["packages"]["torch"].startswith("2.")


def test_an_existing_run_resumes_or_is_refused(tmp_path: Path) -> None:
    RunDir.open(tmp_path / "a", Run())
    assert RunDir.open(tmp_path / "a", Run()).resumed
    assert len(json.loads((tmp_path / "a" / "provenance.json").read_text())["resumes"]) == 1
    with pytest.raises(ConfigError, match="already holds a run.*--run-dir"):
        RunDir.open(tmp_path / "a", Run(), resume="never")


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="not a run"):
        RunDir.open(tmp_path, Run())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_may_change_how_long_but_not_what_is_learned(tmp_path: Path) -> None:
    RunDir.open(tmp_path / "a", Run())
    RunDir.open(tmp_path / "a", Run(steps=99, log_every=1))
    assert "steps: 99" in (tmp_path / "a" / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"group_size: 4 -> 8\n  optim.lr: 0.1 -> 0.5"):
        RunDir.open(tmp_path / "a", replace(Run(), group_size=8, optim=Optim(lr=0.5), steps=3))
    assert "group_size: 4" in (tmp_path / "a" / "config.yaml").read_text()


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    script = (
        "import sys; from gvcot.run_dir import RunDir; from sft.config import CodecTrainConfig; "
        "RunDir.open(sys.argv[1], CodecTrainConfig(name='a', steps=1)); print('open', flush=True); "
        "sys.stdin.read()"
    )
    config = CodecTrainConfig(name="a", steps=1)
    command = [sys.executable, "-c", script, str(tmp_path / "a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(ConfigError, match="still going in another process"):
            RunDir.open(tmp_path / "a", config)
        other.kill()
    assert RunDir.open(tmp_path / "a", config).resumed


def test_checkpoints_are_pointed_to_and_the_newest_are_kept(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "a", Run())
    for step in (2, 4, 10):
        save(run, step, keep=2)
    newest = run.latest_checkpoint()
    assert newest is not None
    assert newest.step == run.resume_step == 10
    assert (newest.path / "shard" / "model.safetensors").read_text() == "weights"
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["latest", "step_10", "step_4"]
    save(run, 12, keep=1)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["latest", "step_12"]


def test_a_save_that_dies_leaves_the_last_checkpoint_in_place(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "a", Run())
    save(run, 2)

    def die() -> None:
        with run.save_checkpoint(4) as folder:
            (folder / "half").write_text("x")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        die()
    assert run.resume_step == 2
    save(run, 4, text="again")
    assert run.resume_step == 4


def test_a_checkpoint_that_nobody_wrote_is_none(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "a", Run())
    with run.save_checkpoint(1) as folder:
        (folder / "state").touch()
    with pytest.raises(CheckpointError, match="nothing was written"), run.save_checkpoint(2):
        pass
    assert run.resume_step == 1


def test_a_crash_before_the_pointer_moved_is_survived(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "a", Run())
    save(run, 2)
    (run.checkpoints / "latest").unlink()
    assert run.resume_step == 2
    save(run, 4)
    (run.checkpoints / "latest").write_text("step_2")
    assert run.resume_step == 2
    save(run, 4, text="anew")
    assert (run.checkpoints / "step_4" / "shard" / "model.safetensors").read_text() == "anew"


def test_a_damaged_checkpoint_is_an_error_and_never_a_fresh_start(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "a", Run())
    save(run, 2)
    save(run, 4)
    (run.checkpoints / "step_4" / "shard" / "model.safetensors").write_text("wei")
    with pytest.raises(CheckpointError, match=r"truncated.*3 bytes, expected 7; write one of step_2 into"):
        run.latest_checkpoint()
    (run.checkpoints / "step_4" / "shard" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks shard/model.safetensors"):
        run.latest_checkpoint()
    (run.checkpoints / "latest").write_text("step_9")
    with pytest.raises(CheckpointError, match="does not exist"):
        run.latest_checkpoint()
    (run.checkpoints / "latest").write_text("")
    with pytest.raises(CheckpointError, match="expected step_<number>"):
        run.latest_checkpoint()
