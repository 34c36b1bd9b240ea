"""`gvcot judge serve`: the command itself, as another process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from experiments.cli import main
from gvcot.config import load, recipe_names
from rewards.judge.injections import INJECTIONS
from rewards.judge.scenes_server import running
from rewards.judge.serve_config import ScenesJudgeConfig, ServeConfig


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("recipe", recipe_names("judge"))
def test_shipped_judges_are_whole(recipe: str) -> None:
    config = load(ServeConfig, recipe)
    assert (config.vllm is None) != (config.scenes is None)


def test_the_scenes_judge_is_served_until_it_is_terminated(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "experiments.cli", "judge", "serve", "scenes", f"port={port}"]
    environment = os.environ | {"COLUMNS": "200"}
    output = tmp_path / "out.txt"
    with output.open("w") as file, subprocess.Popen(command, stdout=file, env=environment) as process:
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    models = httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).json()
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            assert [model["id"] for model in models["data"]] == ["scenes-judge"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)
    assert f"{{base_url: http://127.0.0.1:{port}/v1, model: scenes-judge, send_metadata: true}}" in (
        output.read_text()
    )


def test_a_missing_environment_says_how_to_build_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["judge", "serve", "learned", "vllm.python=nowhere/bin/python"])
    assert ended.value.code == 2
    assert "there is no nowhere/bin/python. Build it with `make vllm`" in capsys.readouterr().err


def test_two_judges_in_one_recipe_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["judge", "serve", "scenes", "vllm.model=x"])
    assert "exactly one of scenes and vllm" in capsys.readouterr().err


def test_injections_are_tried_on_a_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scenes judge reads no text, so nothing moves it."""
    monkeypatch.setenv("COLUMNS", "200")
    with running(ScenesJudgeConfig()) as url, pytest.raises(SystemExit) as ended:
        main(["judge", "injections", url, "--model", "scenes-judge", "--count", "1"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "image_verified" in said
    assert said.count("+0.00") == 2 * len(INJECTIONS)
