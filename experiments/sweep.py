"""`gvcot sweep`: many runs of one recipe, side by side, and what came of them in one table.

    runs/<sweep>/sweep.yaml              the sweep's configuration
                 <arm>-seed<k>/          a run like any other
                 trials/                 how each trial went, and what it printed
                 results.json report.html tb/

Ray Tune schedules the trials by the CPUs and GPUs that they use. Each has a process, and a Ray, of its own.
Given the same command again, a sweep goes on: finished trials are skipped, the others go on from their
checkpoints.
"""

from __future__ import annotations

import logging
import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from filelock import FileLock, Timeout
from rich.console import Console

from experiments.sweep_config import (
    RunConfig,
    SweepConfig,
    Trial,
    cpus_reserved,
    gpus_reserved,
    plan,
)
from experiments.sweep_trial import NICENESS, read_record, record_path, run_trial
from gvcot.config import dump, load_dump
from gvcot.errors import ConfigError, DataError
from gvcot.run_dir import write_atomic

SWEEP_FILE = "sweep.yaml"


def run_sweep(config: SweepConfig, root: Path | None, *, dry_run: bool) -> bool:
    """Run what is left to run of a sweep and show its results; a dry run only says what it would run.

    Args:
        config: the sweep.
        root: its folder; None: `runs/<name>`.
        dry_run: print the sweep and its trials, and stop.

    Returns:
        Whether all is done that was asked for.

    Raises:
        ConfigError, ResourceError: as `run_trials`.
    """
    if dry_run:
        describe(config)
        return True
    root = root or default_root(config)
    done = run_trials(config, root)
    show(root)
    return done


def default_root(config: SweepConfig) -> Path:
    """The folder of a sweep that is given none."""
    return Path("runs") / config.name


def describe(config: SweepConfig) -> None:
    """Print a sweep's configuration and its trials. Raises ConfigError as `plan` does."""
    typer.echo(dump(config))
    for trial, _ in plan(config):
        typer.echo(f"{trial.name}: {shlex.join(['gvcot', config.command, config.recipe, *trial.overrides])}")


def run_trials(config: SweepConfig, root: Path) -> bool:
    """Run what is left to run; whether all trials are finished then.

    Raises:
        ConfigError: an arm is wrong, the folder is something else, or another process is at it.
        ResourceError: a trial asks for more than this machine has.
    """
    planned = plan(config)
    with opened(root):
        write_atomic(root / SWEEP_FILE, dump(config))
        waiting = [(trial, run) for trial, run in planned if not is_finished(root, trial, run)]
        typer.echo(f"{root}: {len(planned)} trials, {len(planned) - len(waiting)} of them finished before")
        if waiting:
            schedule(config, root, waiting)
        return all(is_finished(root, trial, run) for trial, run in planned)


def show(root: Path) -> None:
    """Print a sweep's table, and write results.json, report.html and tb/, from what is on disk.

    Raises:
        DataError: the folder is not a sweep.
    """
    from experiments.sweep_report import tables, write_report
    from experiments.sweep_results import collect

    results = collect(read_sweep(root), root)
    found = tables(results)
    write_report(results, found)
    for table in found:
        Console().print(table.rich())
    typer.echo(f"report: {root / 'report.html'}\ntensorboard --logdir {root / 'tb'}")


def read_sweep(root: Path) -> SweepConfig:
    """The configuration of a sweep that was started.

    Raises:
        DataError: the folder is not a sweep.
    """
    if not (root / SWEEP_FILE).is_file():
        raise DataError(f"{root} is not a sweep: expected a folder with a {SWEEP_FILE}, such as runs/tiny-lr")
    return load_dump(SweepConfig, root / SWEEP_FILE)


def is_finished(root: Path, trial: Trial, run: RunConfig) -> bool:
    """Whether a trial has ended well, with the configuration that it would get today."""
    record, config = read_record(root, trial.name), root / trial.name / "config.yaml"
    if record is None or record.state != "done" or not config.is_file():
        return False
    try:
        return load_dump(type(run), config) == run
    except ConfigError:  # of a version with other settings
        return False


@contextmanager
def opened(root: Path) -> Iterator[None]:
    """The sweep's folder, for this process alone."""
    if root.is_dir() and any(root.iterdir()) and not (root / SWEEP_FILE).is_file():
        raise ConfigError(f"{root} is not empty and not a sweep; choose another folder with --run-dir")
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root.resolve() / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{root} belongs to a sweep that is still going in another process; wait for it or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def schedule(config: SweepConfig, root: Path, waiting: Sequence[tuple[Trial, RunConfig]]) -> None:
    """Run trials, as many at a time as fit, until all have ended or the user interrupts."""
    kept = {name: os.environ[name] for name in (NICENESS,) if name in os.environ}
    launches = [
        {
            "root": str(root.resolve()),
            "trial": trial.name,
            "command": command(config, root, trial),
            "folder": str(Path.cwd()),
            "cpus": cpus_reserved(config, run),
            "gpus": gpus_reserved(run),
            "env": kept | {"OMP_NUM_THREADS": str(cpus_reserved(config, run))},
        }
        for trial, run in waiting
    ]
    # Tune's own reports of each trial would stand between ours, and it logs to files that nobody reads.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault(NICENESS, "0")  # a trial has the priority of a run by hand
    from rl import cluster  # before Ray: it sets what Ray reads when imported

    most = {name: max(launch[name] for launch in launches) for name in ("cpus", "gpus")}
    cluster.start(1, most["cpus"], gpus_per_worker=most["gpus"], object_store_mb=100)
    try:
        from ray import tune

        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory() as folder:
            tune.Tuner(
                tune.with_resources(trainable, resources),
                param_space={"launch": tune.grid_search(launches)},
                tune_config=tune.TuneConfig(max_concurrent_trials=config.max_concurrent),
                run_config=tune.RunConfig(
                    name=config.name,
                    storage_path=folder,
                    verbose=0,
                    callbacks=[progress(root, len(launches))],
                ),
            ).fit()
    finally:
        cluster.stop()


def command(config: SweepConfig, root: Path, trial: Trial) -> list[str]:
    """Arguments of `gvcot` that run a trial."""
    folder = str((root / trial.name).resolve())
    return [config.command, config.recipe, *trial.overrides, "--run-dir", folder]


def trainable(settings: dict[str, Any]) -> None:
    """Tune's trainable: waits for the trial's process. A failure is a result, and the others go on."""
    from ray import tune

    it = settings["launch"]
    record = run_trial(Path(it["root"]), it["trial"], it["command"], env=it["env"], folder=Path(it["folder"]))
    tune.report({"failed": record.state == "failed", "seconds": record.seconds})


def resources(settings: dict[str, Any]) -> Any:
    """What a trial reserves."""
    from ray import tune

    it = settings["launch"]
    return tune.PlacementGroupFactory([{"CPU": it["cpus"], "GPU": it["gpus"]}])


def progress(root: Path, total: int) -> Any:
    """Tune's callback that says on the terminal when trials begin and end."""
    from ray import tune

    class Progress(tune.Callback):
        def __init__(self) -> None:
            self._ended = 0

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            typer.echo(f"begins: {trial.config['launch']['trial']}")

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._say(trial)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._say(trial)

        def _say(self, trial: Any) -> None:
            name = trial.config["launch"]["trial"]
            record = read_record(root, name)
            self._ended += 1
            state = record.state if record and record.state != "running" else "unfinished"
            told = f"[{self._ended}/{total}] {state}: {name}"
            if record and record.state == "failed":
                told += f"\n{record.error}\nall it printed: {record_path(root, name).with_suffix('.log')}"
            typer.echo(told)

    return Progress()
