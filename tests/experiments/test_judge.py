"""`gvcot judge serve`: the command itself, as another process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
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


VLLM = """#!{python}
import http.server, sys, time

class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Healthy).handle_request()
{life}
"""


def serve_stand_in(folder: Path, life: str) -> list[str]:
    """The command with a stand-in for vLLM: says once that it is healthy, and then does what `life` says."""
    script = folder / "python"
    script.write_text(VLLM.format(python=sys.executable, life=life))
    script.chmod(0o755)
    command = [sys.executable, "-m", "experiments.cli", "judge", "serve", "learned"]
    return [*command, f"vllm.python={script}", f"port={free_port()}", "--log", str(folder / "judge.log")]


def test_a_vllm_that_dies_ends_the_command_with_its_last_words(tmp_path: Path) -> None:
    command = serve_stand_in(tmp_path, "sys.exit('EngineDeadError')")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "model: learned-judge}]" in ended.stdout
    assert "vLLM ended with exit code 1 while it was serving" in ended.stderr
    assert ended.stderr.rstrip().endswith("EngineDeadError")


def test_a_terminated_command_ends_its_vllm(tmp_path: Path) -> None:
    command = serve_stand_in(tmp_path, "time.sleep(600)")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "model: learned-judge}]" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "stopped\n"
        assert process.wait(timeout=20) == 0
    found = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert not found


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


@pytest.mark.slow
def test_the_measurement_of_throughput_runs(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    script = Path(__file__).parents[2] / "docs" / "measured" / "judge_throughput.py"
    subprocess.run([sys.executable, script, out, "2"], check=True, timeout=600)
    found = json.loads(out.read_text())
    faulty = found.pop("with faults")
    assert found.pop("edits") == 2
    assert len(found) == 2 * 4 + 2 * 2 + 1
    assert all(speed > 0 for speed in found.values())
    assert found["warm cache, answers after .3 s"] > found["cold cache, answers after .3 s"]
    assert faulty["same_scores"]
    assert faulty["samples_per_second"] > 0
