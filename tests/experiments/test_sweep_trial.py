"""One trial in a process of its own, and what is noted of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from experiments.sweep import is_finished
from experiments.sweep_config import Trial
from experiments.sweep_trial import Record, last_error, read_record, run_trial, write_record
from gvcot.config import dump, load
from rl.config import RLConfig


def test_how_a_trial_ended_is_noted_with_what_it_said(tmp_path: Path) -> None:
    def run(*command: str) -> None:
        run_trial(tmp_path, "a-seed0", command, env={}, folder=tmp_path)

    assert read_record(tmp_path, "a-seed0") is None
    run("rl", "rl/tiny", "gruop_size=4", "--run-dir", str(tmp_path / "run"))
    failed = read_record(tmp_path, "a-seed0")
    assert failed is not None
    assert failed.state == "failed"
    assert failed.error.startswith("ConfigError: unknown key 'gruop_size'")
    assert failed.error.endswith("(exit code 2)")
    run("rl", "rl/tiny", "--dry-run")
    done = read_record(tmp_path, "a-seed0")
    assert done is not None
    assert (done.state, done.error) == ("done", "")
    assert done.seconds > failed.seconds > 0  # of both attempts
    assert "name: tiny-rl" in (tmp_path / "trials" / "a-seed0.log").read_text()


def test_a_trial_is_done_until_it_is_asked_for_another_run(tmp_path: Path) -> None:
    trial, run = Trial("a", 0, ()), load(RLConfig, "rl/tiny", ["steps=3"])
    assert not is_finished(tmp_path, trial, run)
    (tmp_path / trial.name).mkdir()
    settings = dump(run).splitlines(keepends=True)
    older = "".join(line for line in settings if not line.startswith("shuffle_rewards"))  # a later setting
    assert older != dump(run)
    (tmp_path / trial.name / "config.yaml").write_text(older)
    write_record(tmp_path, trial.name, Record(state="done", error="", seconds=1.0))
    assert is_finished(tmp_path, trial, run)
    assert not is_finished(tmp_path, trial, load(RLConfig, "rl/tiny", ["steps=4"]))
    (tmp_path / trial.name / "config.yaml").write_text(dump(run) + "gone: 1\n")
    assert not is_finished(tmp_path, trial, run)


def test_a_trial_ends_with_the_process_that_started_it() -> None:
    waiting = "import time; from experiments.sweep_trial import end_with_parent; end_with_parent()"
    with subprocess.Popen(
        [sys.executable, "-c", f"{waiting}; time.sleep(60)"], stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 128 + 15


def test_the_last_error_of_a_log_is_told() -> None:
    log = """\
Traceback (most recent call last):
  File "x.py", line 1
KeyError: 'first'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "y.py", line 2
torch.cuda.OutOfMemoryError: out of memory
use a smaller batch

"""
    assert (
        last_error(log, 1) == "torch.cuda.OutOfMemoryError: out of memory\nuse a smaller batch\n(exit code 1)"
    )
    assert last_error("Killed by a stranger\n", -9) == "Killed by a stranger\n(exit code -9)"
    assert last_error("", -9) == "(exit code -9)"
