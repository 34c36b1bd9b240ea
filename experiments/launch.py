"""From a recipe to a finished run: what `gvcot sft`, `gvcot rl` and `gvcot eval` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from gvcot.config import dump, flatten, load, to_dict
from gvcot.errors import CheckpointError
from gvcot.run_dir import Resume, RunDir
from rl.config import RLConfig
from sft.config import CodecTrainConfig, SFTConfig

WARM_START = "warm_start"
"""Names the shipped model wherever a checkpoint folder is asked for."""

ASSETS = Path(__file__).resolve().parents[1] / "gvcot" / "assets"


def model_folder(name: str | Path) -> Path:
    """The checkpoint folder that a name stands for: the shipped model, a run (its result), or the folder itself.

    Raises:
        CheckpointError: there is no such folder.
    """
    if str(name) == WARM_START:
        return ASSETS / WARM_START
    folder = Path(name)
    for candidate in (folder / "final", folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise CheckpointError(
        f"{str(name)!r} holds no model. Expected a folder with config.json and ema.safetensors, a run folder whose "
        f"run has finished, or {WARM_START!r} for the shipped model"
    )


def run_sft(
    recipe: str | Path, overrides: Sequence[str], *, resume: Resume, dry_run: bool, run_dir: Path | None
) -> Path | None:
    """One supervised stage (or the codec); the finished run's folder, None after a dry run."""
    is_codec = Path(recipe).stem.endswith("codec")
    config = load(CodecTrainConfig if is_codec else SFTConfig, recipe, overrides)
    if dry_run:
        typer.echo(dump(config))
        return None
    from experiments.report import build_report
    from gvcot.tracking import Tracker

    run = RunDir.open(run_dir or Path("runs") / config.name, config, resume=resume, seed=config.seed)
    with Tracker(run.path, resume_step=run.resume_step if run.resumed else None) as tracker:
        if isinstance(config, CodecTrainConfig):
            from sft.codec import train_codec

            metrics = train_codec(config, run, tracker)
        else:
            from experiments.evaluate import StageEvaluator
            from sft.train import train

            metrics = train(config, run, tracker, StageEvaluator(config, run.path, tracker))
        tracker.hparams(flatten(to_dict(config)), metrics)
    typer.echo(f"done: {run.path}\nreport: {build_report(run.path)}\nmodel: {run.path / 'final'}")
    return run.path


def run_rl(
    recipe: str | Path, overrides: Sequence[str], *, resume: Resume, dry_run: bool, run_dir: Path | None
) -> Path | None:
    """One RL run; the finished run's folder, None after a dry run."""
    config = load(RLConfig, recipe, overrides)
    if dry_run:
        typer.echo(dump(config))
        return None
    from experiments.report import build_report
    from experiments.rl_run import execute
    from gvcot.tracking import Tracker

    run = RunDir.open(run_dir or Path("runs") / config.name, config, resume=resume, seed=config.seed)
    with Tracker(run.path, resume_step=run.resume_step if run.resumed else None) as tracker:
        execute(config, run, tracker, model_folder(config.model))
    typer.echo(f"done: {run.path}\nreport: {build_report(run.path)}\nmodel: {run.path / 'final'}")
    return run.path


def run_eval(checkpoint: str | Path, overrides: Sequence[str], *, split: str, dry_run: bool) -> dict[str, Any] | None:
    """Evaluate a model on a split with the settings of recipe `eval/scenes`; its metrics, None after a dry run."""
    from experiments.evaluate import EvalRunConfig, evaluate_folder

    config = load(EvalRunConfig, "eval/scenes", [f"split={split}", *overrides])
    if dry_run:
        typer.echo(dump(config))
        return None
    return evaluate_folder(model_folder(checkpoint), config)
