"""What came of a sweep: from its runs' folders to one mean, interval and curve per arm.

Legend: F runs (seeds of an arm), B scenes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from experiments.bootstrap import Difference, evaluations, mean_difference
from experiments.records import read_values
from experiments.report import group_by_area
from experiments.slices import bootstrap_mean
from experiments.sweep_config import SweepConfig, Trial, arms_of, trials
from experiments.sweep_trial import read_record
from gvcot.config import decode, flatten
from gvcot.data.pairs.config import PairsConfig
from gvcot.errors import DataError, closest
from gvcot.tracking import read_metrics

EVAL = "eval/"
"""Area of the metrics that evaluations keep by scene."""

SCORING_FILE = "scoring.json"
"""Seconds of a training step that each reward takes; only a reward ablation has it."""

State = Literal["waiting", "unfinished", "failed", "done"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """One run of a sweep, as it is on disk."""

    name: str
    """Of its folder in the sweep's."""

    seed: int
    state: State
    error: str = ""
    seconds: float | None = None
    """Wall-clock time of its attempts that came to an end."""

    config: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> value of its whole configuration."""

    logged: dict[str, np.ndarray] = field(default_factory=dict)
    """Metric -> (n, 2) array of (step, value)."""

    scene_ids: list[str] = field(default_factory=list)
    """Of its last evaluation."""

    scenes: dict[str, np.ndarray] = field(default_factory=dict)
    """Metric -> (B,) values of its last evaluation; NaN where missing."""

    @property
    def seconds_per_step(self) -> float | None:
        """Of training, evaluations left out; None where it isn't logged."""
        if "time/step" in self.logged:
            return float(self.logged["time/step"][:, 1].mean())
        if "time/seconds_per_step" in self.logged:  # itself a mean, over the steps so far
            return float(self.logged["time/seconds_per_step"][-1, 1])
        return None

    def value(self, metric: str) -> float | None:
        """The last one logged."""
        return float(self.logged[metric][-1, 1]) if metric in self.logged else None


class Estimate(NamedTuple):
    """A metric of one arm."""

    mean: float
    """Over its finished runs; over scenes, of the mean over runs, where there are values by scene."""

    low: float | None
    """Lower end of the 95 % interval, over scenes and runs; None without values by scene."""

    high: float | None
    """Its upper end."""

    by_seed: dict[int, float]
    """Each run's own value."""


class Band(NamedTuple):
    """A metric of one arm over training, at the steps that all its runs logged."""

    step_n: np.ndarray
    mean_n: np.ndarray
    low_n: np.ndarray
    """The lowest run."""

    high_n: np.ndarray
    """The highest run."""

    num_runs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """The runs that differ in their seeds alone."""

    name: str
    settings: tuple[str, ...]
    """Its overrides of the sweep's recipe."""

    trials: list[TrialResult]
    """In the order of the sweep's seeds."""

    estimates: dict[str, Estimate | None]
    """Of the metrics of the sweep's table."""

    @property
    def done(self) -> list[TrialResult]:
        """Those that count."""
        return finished(self.trials)

    def band(self, metric: str) -> Band | None:
        """The metric over training; None where no finished run has it, or the runs share no step."""
        curves = [dict(t.logged[metric].tolist()) for t in self.done if metric in t.logged]
        steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        if not steps:
            return None
        value_Fn = np.array([[curve[step] for step in steps] for curve in curves])
        return Band(np.array(steps), value_Fn.mean(0), value_Fn.min(0), value_Fn.max(0), len(curves))

    def seconds_per_step(self) -> float | None:
        """Mean over the finished runs that log it."""
        return _mean([t.seconds_per_step for t in self.done])

    def seconds(self) -> float | None:
        """Mean wall-clock time of the finished runs."""
        return _mean([t.seconds for t in self.done])


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """All of a sweep's results."""

    config: SweepConfig
    root: Path
    arms: dict[str, Arm]
    differences: list[Difference | None]
    """Of each of the sweep's comparisons: `against` before, `arm` after; None where a side has no values."""

    scoring: dict[str, float] = field(default_factory=dict)
    """Reward -> seconds of a training step that it takes, where that was measured."""

    @property
    def trials(self) -> list[TrialResult]:
        """All runs."""
        return [trial for arm in self.arms.values() for trial in arm.trials]

    def unknown(self) -> dict[str, str]:
        """Metrics of the table that no finished run has logged, with the closest that one has."""
        logged = {name for trial in self.trials if trial.state == "done" for name in trial.logged}
        return {name: closest(name, logged) for name in self.config.metric if logged and name not in logged}


def collect(config: SweepConfig, root: Path) -> Results:
    """Read a sweep's runs from disk and sum them up.

    Raises:
        DataError: arms that are compared were evaluated on different scenes.
    """
    runs: dict[str, list[TrialResult]] = defaultdict(list)
    for trial in trials(config):
        runs[trial.arm].append(read_trial(root, trial))
    arms = {
        name: Arm(
            name=name,
            settings=settings,
            trials=runs[name],
            estimates={metric: estimate(finished(runs[name]), metric) for metric in config.metric},
        )
        for name, settings in arms_of(config).items()
    }
    path = root / SCORING_FILE
    return Results(
        config=config,
        root=root,
        arms=arms,
        differences=[difference(arms[c.arm].done, arms[c.against].done, c.metric) for c in config.compare],
        scoring=json.loads(path.read_text()) if path.is_file() else {},
    )


def evaluation_name(options: Mapping[str, Any]) -> str:
    """What a run's evaluations are called, from the `eval` of its configuration as it is stored."""
    pairs = options.get("pairs")
    return options["split"] if pairs is None else decode(PairsConfig, pairs).name


def read_trial(root: Path, trial: Trial) -> TrialResult:
    """One run, finished or not."""
    record, folder = read_record(root, trial.name), root / trial.name
    if record is None:
        return TrialResult(name=trial.name, seed=trial.seed, state="waiting")
    raw = yaml.safe_load(config.read_text()) if (config := folder / "config.yaml").is_file() else {}
    areas = group_by_area(read_metrics(folder))
    files = evaluations(folder, evaluation_name(raw["eval"])) if "eval" in raw else []
    ids, values = read_values(files[-1]) if files else ([], {})
    return TrialResult(
        name=trial.name,
        seed=trial.seed,
        state="unfinished" if record.state == "running" else record.state,
        error=record.error,
        seconds=record.seconds,
        config=flatten(raw),
        logged={metric: points for area in areas.values() for metric, points in area.items()},
        scene_ids=ids,
        scenes={f"{EVAL}{metric}": value_B for metric, value_B in values.items()},
    )


def finished(runs: Sequence[TrialResult]) -> list[TrialResult]:
    """The runs that count."""
    return [run for run in runs if run.state == "done"]


def estimate(runs: Sequence[TrialResult], metric: str) -> Estimate | None:
    """Mean over an arm's finished runs, interval and each run's value; None where none has the metric."""
    values = {run.seed: value for run in runs if (value := run.value(metric)) is not None}
    if not values:
        return None
    rows_FB = scene_rows(runs, metric)
    found = None if rows_FB is None else bootstrap_mean(rows_FB)
    if found is None:
        return Estimate(float(np.mean(list(values.values()))), None, None, values)
    return Estimate(found.value, found.low, found.high, values)


def difference(runs: Sequence[TrialResult], against: Sequence[TrialResult], metric: str) -> Difference | None:
    """What one arm's finished runs have more than another's; None where a side has no values by scene.

    Of seeds that both have, where there are some: a seed that one side lacks would count as a difference.

    Raises:
        DataError: they were evaluated on different scenes.
    """
    shared = {run.seed for run in runs} & {run.seed for run in against}
    if shared:
        runs, against = ([run for run in side if run.seed in shared] for side in (runs, against))
    rows_FB = scene_rows([*against, *runs], metric)
    if rows_FB is None or not (runs and against):
        return None
    return mean_difference(rows_FB[: len(against)], rows_FB[len(against) :])


def scene_rows(runs: Sequence[TrialResult], metric: str) -> np.ndarray | None:
    """(F, B) values of the runs' last evaluations; None where one of them has none.

    Raises:
        DataError: they are of different scenes.
    """
    if not runs or not all(metric in run.scenes for run in runs):
        return None
    for run in runs:
        if run.scene_ids != runs[0].scene_ids:
            raise DataError(
                f"{run.name} and {runs[0].name} were evaluated on different scenes; give all arms the same "
                "eval settings"
            )
    return np.stack([run.scenes[metric] for run in runs])


def as_json(results: Results) -> dict[str, Any]:
    """What `results.json` holds."""
    config = results.config
    return {
        "name": config.name,
        "command": config.command,
        "recipe": config.recipe,
        "seeds": list(config.seeds),
        "arms": {name: _arm_json(arm) for name, arm in results.arms.items()},
        "compare": [
            {"metric": c.metric, "arm": c.arm, "against": c.against, "difference": _difference_json(d)}
            for c, d in zip(config.compare, results.differences, strict=True)
        ],
        "scoring": results.scoring,
    }


def _arm_json(arm: Arm) -> dict[str, Any]:
    return {
        "settings": list(arm.settings),
        "metrics": {metric: found and found._asdict() for metric, found in arm.estimates.items()},
        "seconds_per_step": arm.seconds_per_step(),
        "seconds": arm.seconds(),
        "trials": {t.seed: {"state": t.state, "seconds": t.seconds, "error": t.error} for t in arm.trials},
    }


def _difference_json(found: Difference | None) -> Mapping[str, float] | None:
    if found is None:
        return None
    return {"mean": found.after - found.before, "low": found.low, "high": found.high}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
