"""`gvcot judge`: serve a judge until interrupted, train one, and compare one with the truth."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gvcot.config import dump, load
from gvcot.run_dir import Resume, RunDir
from rewards.judge.config import EndpointConfig, JudgeConfig
from rewards.judge.serve_config import ServeConfig, VLLMConfig


def serve(recipe: str, overrides: Sequence[str], log: Path) -> None:
    """Serve what a recipe says until the process is interrupted or terminated.

    Args:
        recipe: name or file of a `ServeConfig`.
        overrides: dotted ones.
        log: file for vLLM's output.

    Raises:
        ConfigError: see `load`.
        ResourceError: vLLM doesn't start, or ends by itself.
    """
    config = load(ServeConfig, recipe, overrides)
    if config.vllm is not None:
        _serve_vllm(config.vllm, config.host, config.port, log)
    if config.scenes is not None:
        from rewards.judge import scenes_server

        _announce(f"http://{config.host}:{config.port}/v1", config.scenes.model, ", send_metadata: true")
        scenes_server.serve(config.scenes, config.host, config.port)


def _serve_vllm(config: VLLMConfig, host: str, port: int, log: Path) -> None:
    from rewards.judge.vllm_server import serve_vllm

    # a terminated process must end its server, too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    Console().print(f"starting {config.model}; its output is in {log}", highlight=False)
    try:
        serve_vllm(config, host, port, log, lambda url: _announce(url, config.name))
    except KeyboardInterrupt:
        Console().print("stopped")


def _announce(url: str, model: str, more: str = "") -> None:
    console = Console()
    console.print("In a recipe (Ctrl-C stops the judge):", style="bold")
    endpoint = f"  endpoints: [{{base_url: {url}, model: {model}{more}}}]"
    console.print(endpoint, markup=False, highlight=False, soft_wrap=True)


def train(
    recipe: str, overrides: Sequence[str], *, resume: Resume, dry_run: bool, run_dir: Path | None
) -> Path | None:
    """Train a judge on edits of Scenes; the finished run's folder, None after a dry run.

    Args:
        recipe: name or file of a `LearnedJudgeConfig`.
        overrides: dotted ones.
        resume, run_dir: as in `RunDir.open`; the folder is runs/<name> by default.
        dry_run: print the configuration only.

    Raises:
        ConfigError, CheckpointError: see `load`, `RunDir.open` and the training.
    """
    from experiments.learned_judge.config import LearnedJudgeConfig

    config = load(LearnedJudgeConfig, recipe, overrides)
    if dry_run:
        Console().print(dump(config), markup=False, highlight=False)
        return None
    from experiments.learned_judge import agreement
    from experiments.learned_judge import train as training
    from gvcot.tracking import Tracker

    run = RunDir.open(run_dir or Path("runs") / config.name, config, resume=resume, seed=config.seed)
    with Tracker(run.path, resume_step=run.resume_step if run.resumed else None) as tracker:
        found = training.train(config, run, tracker)
    Console().print(agreement.as_table(found))
    final = run.path / "final"
    Console().print(f"done: {final}\nserve it: gvcot judge serve learned vllm.model={final}", highlight=False)
    return run.path


def show_agreement(
    judge: str,
    *,
    model: str,
    count: int,
    first: int,
    api_key_env: str | None = None,
    send_metadata: bool = False,
    image_size: int | None = None,
) -> None:
    """Print how a judge agrees with the exact scores of edits of val scenes, and what it takes each kind for.

    Args:
        judge: a learned judge's folder, or the base URL of a server.
        model: its name there.
        count: how many scenes, six edits each.
        first: index of the first one.
        api_key_env, send_metadata, image_size: of a server, see `JudgeConfig`.

    Raises:
        CheckpointError, ConfigError, RewardError: no such judge, or it can't be asked.
    """
    from experiments.learned_judge.agreement import as_table, compare, means_by_kind, served_scores
    from experiments.learned_judge.config import DataConfig
    from experiments.learned_judge.data import load_pairs

    edits = DataConfig(split="val", first_scene=first, num_scenes=count)
    if judge.startswith(("http://", "https://")):
        config = client(judge, model, api_key_env, send_metadata=send_metadata, image_size=image_size)
        truth = load_pairs(edits)
        scores_N2 = served_scores(config, truth)
    else:
        from experiments.learned_judge.model import find_judge, load_judge, scores_of

        folder = find_judge(Path(judge))
        truth = load_pairs(edits)
        scores_N2 = scores_of(load_judge(folder)[0], truth)
    Console().print(as_table(compare(scores_N2, truth.scores_N2, truth.kind_N)))
    Console().print(as_table(means_by_kind(scores_N2, truth.scores_N2, truth.kind_N)))


def show_injections(
    url: str, *, model: str, count: int, api_key_env: str | None, image_size: int | None
) -> None:
    """Print by how many points each injection moves a judge, over untouched val scenes.

    Args:
        url: base URL of a server.
        model: its name there.
        count: how many scenes.
        api_key_env, image_size: see `JudgeConfig`.

    Raises:
        ConfigError, RewardError: it can't be asked.
    """
    from rich.table import Table

    from gvcot.data import scenes
    from rewards.judge.injections import INJECTIONS, measure_injections
    from rewards.judge.prompts import Edit

    edits = [
        Edit(
            sample_id=sample.sample_id,
            task=sample.task,
            instruction=sample.instruction,
            before_HW3=sample.source_HW3,
            after_HW3=sample.source_HW3,
            mask_HW=sample.mask_HW,
        )
        for sample in scenes.samples("val", range(count))
    ]
    moved = measure_injections(client(url, model, api_key_env, image_size=image_size), edits)
    table = Table("injection", "in the", "semantic consistency", "perceptual quality", "text")
    for injection in INJECTIONS:
        points = (f"{moved[f'{injection.name}/{aspect}']:+.2f}" for aspect in ("sc", "pq"))
        table.add_row(injection.name, injection.where, *points, injection.text)
    Console().print(table)


def client(
    url: str,
    model: str,
    api_key_env: str | None = None,
    *,
    send_metadata: bool = False,
    image_size: int | None = None,
) -> JudgeConfig:
    """How one server is asked."""
    endpoint = EndpointConfig(base_url=url, model=model, api_key_env=api_key_env, send_metadata=send_metadata)
    return JudgeConfig(endpoints=(endpoint,), image_size=image_size)
