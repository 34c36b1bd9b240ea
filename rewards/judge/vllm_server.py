"""A judge served by vLLM, in the environment that `make vllm` builds.

vLLM and the trainer want different versions of transformers, so it never runs in the trainer's process: it is
started with another interpreter and spoken to over HTTP.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

import httpx

from gvcot.errors import ResourceError
from rewards.judge.serve_config import VLLMConfig

CHECKOUT = Path(__file__).resolve().parents[2]

_LAST_LINES = 15


def command(config: VLLMConfig, host: str, port: int) -> list[str]:
    """The command line of the server.

    Raises:
        ResourceError: the environment isn't there.
    """
    python = CHECKOUT / config.python
    if not python.is_file():
        raise ResourceError(
            f"vLLM's environment is missing: there is no {config.python}. Build it with `make vllm`, or give "
            "the interpreter of another one as vllm.python"
        )
    return [
        str(python),
        *("-m", "vllm.entrypoints.openai.api_server"),  # the `vllm` command of CPU builds doesn't start
        *("--model", config.model, "--served-model-name", config.name),
        *("--host", host, "--port", str(port)),
        *("--dtype", config.dtype, "--max-model-len", str(config.max_model_len)),
        *("--max-num-seqs", str(config.max_num_seqs), "--seed", str(config.seed)),
        *("--limit-mm-per-prompt", f'{{"image": {config.images_per_prompt}, "video": 0}}'),
        # unconstrained whitespace lets a weak model fill its answer with blanks
        *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
        *(["--enforce-eager"] if config.enforce_eager else []),
        *config.args,
    ]


@contextmanager
def running_vllm(
    config: VLLMConfig, host: str = "127.0.0.1", port: int = 0, log: Path | None = None
) -> Iterator[str]:
    """A vLLM server, from its start until the end of the block.

    Args:
        config: what is served.
        host, port: where; port 0 takes a free one.
        log: file for the server's output; None: a temporary one.

    Yields:
        The base URL for OpenAI clients, http://<host>:<port>/v1.

    Raises:
        ResourceError: no environment, or the server ends or isn't healthy within `start_timeout_s`; with the
            end of its output.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        _healthy(config, host, port, log or Path(scratch) / "vllm.log") as (url, _),
    ):
        yield url


def serve_vllm(
    config: VLLMConfig, host: str, port: int, log: Path, announce: Callable[[str], None]
) -> NoReturn:
    """Serve until interrupted.

    Args:
        config, host, port, log: as for `running_vllm`.
        announce: told the base URL once the server is healthy.

    Raises:
        ResourceError: as `running_vllm`, or the server ends later on; with the end of its output.
    """
    with _healthy(config, host, port, log) as (url, process):
        announce(url)
        process.wait()  # vLLM ends itself when its engine does
        raise ResourceError(f"vLLM {_ending(process)} while it was serving; start it again. {_tail(log)}")


@contextmanager
def _healthy(
    config: VLLMConfig, host: str, port: int, log: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = port or _free_port(host)
    arguments = command(config, host, port)
    with log.open("w") as output:
        process = _spawn(arguments, config, output)
        try:
            _wait_until_healthy(f"http://{host}:{port}", process, config.start_timeout_s, log)
            yield f"http://{host}:{port}/v1", process
        finally:
            _end(process)


def _spawn(arguments: list[str], config: VLLMConfig, output: IO[str]) -> subprocess.Popen[bytes]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")
    }
    environment |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"} | config.env
    # its engine is a process of its own, so the whole group must be ended
    return subprocess.Popen(
        arguments,
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], timeout_s: float, log: Path) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ResourceError(f"vLLM {_ending(process)} while starting. {_tail(log)}")
        try:
            if httpx.get(url + "/health", timeout=2, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.5)
    raise ResourceError(
        f"vLLM was not healthy after {timeout_s:.0f} s; raise vllm.start_timeout_s if it was still loading. "
        + _tail(log)
    )


def _ending(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    return "The end of its output:\n  " + "\n  ".join(lines)


def _end(process: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(timeout=20)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
