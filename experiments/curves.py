"""Curves of several runs in one picture: an arm is the runs whose names differ in a last number alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.report import group_by_area, panels, smooth
from gvcot.errors import DataError, closest
from gvcot.tracking import read_metrics


def arm_of(run: Path) -> str:
    """The run's name without its last number: "rl-0" and "rl-12" are of the arm "rl"."""
    return re.sub(r"[-_]?\d+$", "", run.resolve().name) or run.resolve().name


def read_curves(runs: Sequence[Path], metrics: Sequence[str]) -> dict[str, dict[str, list[np.ndarray]]]:
    """Metric -> arm -> one (n, 2) array of (step, value) per run that logged it.

    Raises:
        DataError: a folder has logged nothing, or no run has a metric.
    """
    curves: dict[str, dict[str, list[np.ndarray]]] = {metric: defaultdict(list) for metric in metrics}
    known: set[str] = set()
    for run in runs:
        lines = read_metrics(run)
        if not lines:
            raise DataError(f"{run} has logged nothing: expected a run's folder, with a metrics.jsonl")
        logged = {name: points for area in group_by_area(lines).values() for name, points in area.items()}
        known |= logged.keys()
        for metric in metrics:
            if metric in logged:
                curves[metric][arm_of(run)].append(logged[metric])
    for metric, arms in curves.items():
        if not arms:
            raise DataError(f"no run has logged {metric!r}; {closest(metric, sorted(known))}")
    return {metric: dict(arms) for metric, arms in curves.items()}


def mean_curve(runs: Sequence[np.ndarray]) -> np.ndarray:
    """(n, 2) arrays of (step, value) -> their mean at the steps that all of them have."""
    shared = sorted(set.intersection(*({float(step) for step in run[:, 0]} for run in runs)))
    values = [[dict(run.tolist())[step] for step in shared] for run in runs]
    return np.stack([np.array(shared), np.mean(values, axis=0)], axis=1)


def plot_curves(curves: Mapping[str, Mapping[str, Sequence[np.ndarray]]]) -> Figure:
    """A panel per metric: each run faint, each arm's mean bold. Long curves are smoothed over a twentieth."""
    figure, axes = panels(list(curves))
    names = sorted({arm for arms in curves.values() for arm in arms})
    for axis, arms in zip(axes, curves.values(), strict=True):
        for arm, runs in arms.items():
            color = f"C{names.index(arm) % 10}"
            for run in runs:
                axis.plot(*_smoothed(run).T, color=color, alpha=0.35 if len(runs) > 1 else 1.0, linewidth=1)
            if len(runs) > 1:
                axis.plot(*_smoothed(mean_curve(runs)).T, color=color, linewidth=2)
            axis.plot([], [], color=color, label=f"{arm} ({len(runs)})" if len(runs) > 1 else arm)
    axes[0].legend(fontsize=8)
    return figure


def _smoothed(points: np.ndarray) -> np.ndarray:
    return np.stack([points[:, 0], smooth(points[:, 1], len(points) / 20)], axis=1)
