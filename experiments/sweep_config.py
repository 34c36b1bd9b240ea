"""What a sweep runs: arms (settings that are compared) times seeds, every one a run of its own.

Does not import torch.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gvcot.config import flatten, load
from gvcot.errors import ConfigError, closest
from rl.config import RLConfig
from sft.config import CodecTrainConfig, SFTConfig

RunConfig = RLConfig | SFTConfig | CodecTrainConfig

OWN_KEYS = ("name", "seed")
"""Keys of a run that the sweep sets itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A question that the results answer: `metric` of `arm` minus that of `against`, scene by scene."""

    metric: str
    arm: str
    against: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """One sweep."""

    name: str
    """Its folder is `runs/<name>`."""

    command: Literal["rl", "sft"]
    """What every trial is: a run of `gvcot rl` or of `gvcot sft`."""

    recipe: str
    """The recipe of every trial: a shipped one by its full name (`rl/tiny`), or a YAML file."""

    metric: tuple[str, ...]
    """What the table shows, under the names that runs log (`eval/mask_iou`): means with intervals where a run
    keeps values by scene, else the last value that was logged."""

    common: dict[str, Any] = field(default_factory=dict)
    """Settings of every trial, written as in a recipe."""

    arms: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Arms by name, each a list of overrides (`dotted.key=value`)."""

    grid: dict[str, Any] = field(default_factory=dict)
    """Instead of `arms`: dotted keys with a list of values each; every combination is an arm."""

    seeds: tuple[int, ...] = (0,)
    """Every arm is run with each of them."""

    curves: tuple[str, ...] = ()
    """Logged metrics whose curves are drawn besides those of `metric`."""

    compare: tuple[Comparison, ...] = ()
    """Differences between arms that the results end with."""

    max_concurrent: int | None = None
    """Trials at a time; None: as many as fit."""

    cpus_per_trial: int | None = None
    """CPUs that a trial reserves; None: what its workers use."""

    def __post_init__(self) -> None:
        if bool(self.arms) == bool(self.grid):
            raise ConfigError("expected either arms (a name with overrides each) or a grid; give one of them")
        for key in ("metric", "seeds"):
            values = getattr(self, key)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{key}: expected at least one, and each once; got {list(values)}")
        for key in ("max_concurrent", "cpus_per_trial"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key}: expected at least 1, or null; got {value}")
        arms = arms_of(self)
        for comparison in self.compare:
            for arm in (comparison.arm, comparison.against):
                if arm not in arms:
                    raise ConfigError(f"compare: there is no arm {arm!r}; {closest(arm, arms)}")


class Trial(NamedTuple):
    """One run of a sweep."""

    arm: str
    seed: int
    settings: tuple[str, ...]
    """Overrides of the sweep's recipe, the same for all seeds of the arm."""

    @property
    def name(self) -> str:
        """Of its run folder in the sweep's."""
        return f"{self.arm}-seed{self.seed}"

    @property
    def overrides(self) -> tuple[str, ...]:
        """Everything that is set on top of the sweep's recipe."""
        return (*self.settings, f"seed={self.seed}", f"name={self.name}")


def arms_of(config: SweepConfig) -> dict[str, tuple[str, ...]]:
    """Arm -> its overrides.

    Raises:
        ConfigError: a name that can't be a folder's, two arms of one name, an override of `OWN_KEYS`, or a
            grid key without a list of values.
    """
    named = list(config.arms.items()) if config.arms else _grid_arms(flatten(config.grid))
    for name, count in Counter(name for name, _ in named).items():
        if count > 1:
            raise ConfigError(f"grid: {count} arms would be called {name!r}; give each value once")
        if not re.fullmatch(r"[A-Za-z0-9][\w.,=+-]*", name):
            raise ConfigError(
                f"arms: {name!r} can't name a folder; use letters, digits and any of . , = + - _ and begin "
                "with a letter or digit"
            )
    common = tuple(as_override(key, value) for key, value in flatten(config.common).items())
    for name, overrides in [("common", common), *named]:
        for override in overrides:
            if override.partition("=")[0] in OWN_KEYS:
                raise ConfigError(f"{name}: {override}: the sweep sets a trial's name and seed; use seeds")
    return {name: (*common, *overrides) for name, overrides in named}


def trials(config: SweepConfig) -> list[Trial]:
    """All runs of a sweep; one seed of every arm comes before the next seed."""
    arms = arms_of(config).items()
    return [Trial(arm, seed, settings) for seed in config.seeds for arm, settings in arms]


def plan(config: SweepConfig) -> list[tuple[Trial, RunConfig]]:
    """All runs with their full configurations.

    Raises:
        ConfigError: an arm's configuration is wrong, or a trial uses more CPUs than it reserves.
    """
    planned = []
    for trial in trials(config):
        try:
            run = load(run_class(config), config.recipe, trial.overrides)
        except ConfigError as error:
            raise ConfigError(f"arm {trial.arm}: {error}") from error
        used = cpus_used(run)
        if config.cpus_per_trial is not None and used > config.cpus_per_trial:
            raise ConfigError(
                f"arm {trial.arm}: its workers use {used} CPUs, but cpus_per_trial={config.cpus_per_trial}; "
                "reserve more, or lower the number of workers or of their CPUs"
            )
        planned.append((trial, run))
    return planned


def run_class(config: SweepConfig) -> type[RunConfig]:
    """Which configuration the recipe is of."""
    if config.command == "rl":
        return RLConfig
    return CodecTrainConfig if Path(config.recipe).stem.endswith("codec") else SFTConfig


def cpus_used(run: RunConfig) -> int:
    """CPUs of a run's workers; 0 where it takes as many threads as it is given."""
    if isinstance(run, RLConfig):
        policy, scoring = run.cluster, run.reward_workers
        used = policy.num_workers * policy.cpus_per_worker + scoring.num_workers * scoring.cpus_per_worker
        return 1 if policy.address else math.ceil(used)
    return run.threads * (run.workers if isinstance(run, SFTConfig) else 1)


def cpus_reserved(config: SweepConfig, run: RunConfig) -> int:
    """CPUs that a trial waits for before it starts."""
    return config.cpus_per_trial or cpus_used(run) or len(os.sched_getaffinity(0))


def gpus_reserved(run: RunConfig) -> int:
    """GPUs of a run's workers on this machine."""
    if not isinstance(run, RLConfig) or run.cluster.address:
        return 0
    policy, scoring = run.cluster, run.reward_workers
    return math.ceil(
        policy.num_workers * policy.gpus_per_worker + scoring.num_workers * scoring.gpus_per_worker
    )


def as_override(key: str, value: Any) -> str:
    """`key=value`, with a value that reads back as itself."""
    return f"{key}={json.dumps(value)}"


def _grid_arms(grid: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Every combination of the values, named after them: "lr=0.001,group_size=4"."""
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"grid.{key}: expected a list of values, such as [1, 2]; got {values!r}")
    short = _short_names(list(grid))
    return [
        (
            ",".join(f"{short[key]}={_word(value)}" for key, value in zip(grid, values, strict=True)),
            tuple(as_override(key, value) for key, value in zip(grid, values, strict=True)),
        )
        for values in itertools.product(*grid.values())
    ]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last part, or the whole key where two keys end alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def _word(value: Any) -> str:
    """A value as a part of a folder's name."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")
