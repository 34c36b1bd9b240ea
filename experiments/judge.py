"""`gvcot judge`: serve a judge until interrupted, and ask one how it does."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gvcot.config import load
from rewards.judge.serve_config import ServeConfig, VLLMConfig


def serve(recipe: str, overrides: Sequence[str], log: Path) -> None:
    """Serve what a recipe says until the process is interrupted or terminated.

    Args:
        recipe: name or file of a `ServeConfig`.
        overrides: dotted ones.
        log: file for vLLM's output.

    Raises:
        ConfigError, ResourceError: see `load` and the servers.
    """
    config = load(ServeConfig, recipe, overrides)
    if config.vllm is not None:
        _serve_vllm(config.vllm, config.host, config.port, log)
    if config.scenes is not None:
        from rewards.judge import scenes_server

        _announce(f"http://{config.host}:{config.port}/v1", config.scenes.model, ", send_metadata: true")
        scenes_server.serve(config.scenes, config.host, config.port)


def _serve_vllm(config: VLLMConfig, host: str, port: int, log: Path) -> None:
    from rewards.judge.vllm_server import running_vllm

    # a terminated process must end its server, too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    Console().print(f"starting {config.model}; its output is in {log}", highlight=False)
    try:
        with running_vllm(config, host, port, log) as url:
            _announce(url, config.name)
            signal.pause()
    except KeyboardInterrupt:
        Console().print("stopped")


def _announce(url: str, model: str, more: str = "") -> None:
    console = Console()
    console.print("In a recipe (Ctrl-C stops the judge):", style="bold")
    endpoint = f"  endpoints: [{{base_url: {url}, model: {model}{more}}}]"
    console.print(endpoint, markup=False, highlight=False, soft_wrap=True)
