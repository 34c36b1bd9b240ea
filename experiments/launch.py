"""From a recipe to a finished run: what `gvcot sft`, `gvcot rl` and `gvcot eval` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from gvcot.config import dump, flatten, load, to_dict
from gvcot.errors import ConfigError
from gvcot.run_dir import Resume, RunDir
from rl.config import RLConfig
from sft.config import CodecTrainConfig, SFTConfig

NEWEST = -1
"""Instead of a step: the newest checkpoint."""


def run_sft(
    recipe: str | Path, overrides: Sequence[str], *, resume: Resume, dry_run: bool, run_dir: Path | None
) -> Path | None:
    """One supervised stage (or the codec); the finished run's folder, None after a dry run and in processes
    that a launcher has started beside worker 0."""
    is_codec = Path(recipe).stem.endswith("codec")
    config = load(CodecTrainConfig if is_codec else SFTConfig, recipe, overrides)
    if dry_run:
        typer.echo(dump(config))
        return None
    from experiments.report import build_report
    from gvcot import distributed
    from gvcot.tracking import Tracker

    if distributed.launched() and isinstance(config, CodecTrainConfig):
        raise ConfigError("a codec is trained by one process; start it without a launcher")
    if distributed.follows():
        from sft.train import follow

        follow(config)  # pyright: ignore[reportArgumentType] -- no codec's, see above
        return None
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
    from gvcot import distributed
    from gvcot.model.pretrained import find_model
    from gvcot.tracking import Tracker

    if distributed.launched():
        raise ConfigError(
            "RL starts its workers through Ray, on several machines with cluster.address and "
            "cluster.num_nodes (docs/large-models.md); start it without a launcher"
        )
    model = find_model(config.model)
    run = RunDir.open(run_dir or Path("runs") / config.name, config, resume=resume, seed=config.seed)
    with Tracker(run.path, resume_step=run.resume_step if run.resumed else None) as tracker:
        execute(config, run, tracker, model)
    typer.echo(f"done: {run.path}\nreport: {build_report(run.path)}\nmodel: {run.path / 'final'}")
    return run.path


def run_eval(
    checkpoint: str | Path, overrides: Sequence[str], *, split: str, dry_run: bool
) -> dict[str, Any] | None:
    """Evaluate a model on a split as recipe `eval/scenes` says; its metrics, None after a dry run."""
    from experiments.evaluate import EvalRunConfig, evaluate_folder
    from gvcot.model.pretrained import find_model

    config = load(EvalRunConfig, "eval/scenes", [f"split={split}", *overrides])
    if dry_run:
        typer.echo(dump(config))
        return None
    return evaluate_folder(find_model(checkpoint), config)


def run_export(checkpoint: str | Path, out: Path, *, dtype: str, step: int | None = None) -> Path:
    """Write a model as a folder of its own, in BAGEL's format.

    Args:
        checkpoint: model or run folder.
        out: folder to write.
        dtype: a key of `gvcot.model.export.DTYPES`.
        step: of a run's checkpoint, -1 for the newest; None: the model, or the run's result.
    """
    from gvcot.model.export import DTYPES, export, write
    from gvcot.model.pretrained import find_model, history

    if step is None:
        export(find_model(checkpoint), out, DTYPES[dtype])
    else:
        from experiments.checkpoint import model_at

        if out.exists() and any(out.iterdir()):
            raise ConfigError(f"{out} is not empty; choose another folder for the checkpoint's model")
        policy, record = model_at(Path(checkpoint), None if step == NEWEST else step)
        policy.model.to(DTYPES[dtype])
        policy.codec.to(DTYPES[dtype])
        write(policy, history(record), out)
    typer.echo(out)
    return out
