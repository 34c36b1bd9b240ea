"""How a vLLM server's life is watched, on a stand-in for vLLM."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from gvcot.errors import ResourceError
from rewards.judge.serve_config import VLLMConfig
from rewards.judge.vllm_server import running_vllm, serve_vllm

STAND_IN = """#!{python}
import os, signal, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass

print("loading", flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Health).handle_request()
{life}
"""


def stand_in(folder: Path, life: str) -> VLLMConfig:
    """vLLM's interpreter is a script that says once that it is healthy, and then does what `life` says."""
    script = folder / "python"
    script.write_text(STAND_IN.format(python=sys.executable, life=life))
    script.chmod(0o755)
    return VLLMConfig(model="any", python=str(script))


@pytest.mark.parametrize(
    ("death", "ending"),
    [
        ("os._exit(3)", "ended with exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
    ],
)
def test_a_server_that_dies_while_it_serves_is_told_with_its_last_words(
    tmp_path: Path, death: str, ending: str
) -> None:
    life = f"print('EngineDeadError: out of memory', flush=True); {death}"
    announced: list[str] = []
    with pytest.raises(ResourceError, match=f"vLLM {ending} while it was serving; start it again") as raised:
        serve_vllm(stand_in(tmp_path, life), "127.0.0.1", 0, tmp_path / "log", announced.append)
    assert str(raised.value).endswith("The end of its output:\n  loading\n  EngineDeadError: out of memory")
    assert len(announced) == 1


def test_a_server_that_dies_while_it_starts_is_told_likewise(tmp_path: Path) -> None:
    config = stand_in(tmp_path, "")
    Path(config.python).write_text(f"#!{sys.executable}\nraise SystemExit('no such model')")
    with (
        pytest.raises(ResourceError, match=r"vLLM ended with exit code 1 while starting.*\n  no such model"),
        running_vllm(config),
    ):
        pass


def test_a_server_is_ended_with_the_block(tmp_path: Path) -> None:
    life = "print(os.getpid(), flush=True); time.sleep(600)"
    with running_vllm(stand_in(tmp_path, life), log=tmp_path / "log") as url:
        assert url.startswith("http://127.0.0.1:")
        deadline = time.monotonic() + 30
        while len(lines := (tmp_path / "log").read_text().splitlines()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert psutil.pid_exists(int(lines[1]))
    assert not psutil.pid_exists(int(lines[1]))
