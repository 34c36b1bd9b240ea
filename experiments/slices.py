"""Evaluations by task and by kind of referral, with intervals over scenes and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from experiments.bootstrap import mean_difference, scene_means
from experiments.records import USUAL, read_record, read_values
from gvcot.errors import DataError

Field = Literal["task", "referral"]

NOT_LOCAL = frozenset({"background"})
"""Tasks whose region is no thing and no place for one, but a wall."""


class Mean(NamedTuple):
    """Of one metric over the scenes of a slice that have it."""

    num_scenes: int
    value: float
    low: float
    """Lower end of the 95 % interval of the mean."""

    high: float
    """Its upper end."""


def bootstrap_mean(rows_FB: np.ndarray, *, draws: int = 2000, seed: int = 0) -> Mean | None:
    """Mean over scenes of the mean over runs; None where no scene has a value.

    The interval resamples scenes and runs, so it also covers other seeds where there are several.

    Args:
        rows_FB: F runs' values of B scenes; NaN where missing.
        draws: bootstrap resamples.
        seed: of the resampling.
    """
    rows_FB = rows_FB[:, np.isfinite(rows_FB).any(0)]
    runs, count = rows_FB.shape
    if not count:
        return None
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(draws):
        drawn_FB = rows_FB[rng.integers(runs, size=runs)][:, rng.integers(count, size=count)]
        means.append(np.nanmean(scene_means(drawn_FB)) if np.isfinite(drawn_FB).any() else np.nan)
    low, high = np.nanquantile(means, [0.025, 0.975])
    return Mean(count, float(scene_means(rows_FB).mean()), float(low), float(high))


def slices(
    files: Sequence[Path],
    metrics: Sequence[str] | None,
    fields: Sequence[Field],
    *,
    minus: str | None = None,
    against: Sequence[Path] = (),
) -> dict[str, dict[str, Mean | None]]:
    """Slice -> metric -> mean. Slices: "all", "localised" (no `NOT_LOCAL`), each value of the fields.

    Args:
        files: evaluations of the same scenes, one per run.
        metrics: names of per-scene values; None: those of `USUAL` that the files have.
        fields: what to slice by.
        minus: another metric of the same chains, which is subtracted scene by scene.
        against: evaluations of other runs; the means are then of the differences from them.

    Raises:
        DataError: files of different scenes, or a metric that one of them lacks.
    """
    loaded = [read_values(path) for path in (*files, *against)]
    for path, (ids, _) in zip((*files, *against), loaded, strict=True):
        if ids != loaded[0][0]:
            raise DataError(f"{path} and {files[0]} are not of the same scenes; evaluate both on one split")
    if metrics is None:
        metrics = [name for name in USUAL if all(name in values for _, values in loaded)]
    for path, (_, values) in zip((*files, *against), loaded, strict=True):
        for metric in [*metrics, *([minus] if minus else [])]:
            if metric not in values:
                raise DataError(f"{path} has no metric {metric!r}; it has: {', '.join(sorted(values))}")
    labels = read_record(files[0])["samples"]
    task_B = np.array(labels["task"])
    chosen = {"all": np.ones(len(task_B), bool), "localised": ~np.isin(task_B, list(NOT_LOCAL))}
    for field in fields:
        label_B = np.array(labels[field])
        chosen |= {str(name): label_B == name for name in np.unique(label_B)}
    rows = {
        metric: np.stack([values[metric] - (values[minus] if minus else 0.0) for _, values in loaded])
        for metric in metrics
    }
    return {
        name: {metric: _mean(rows_FB[:, mask_B], len(files)) for metric, rows_FB in rows.items()}
        for name, mask_B in chosen.items()
    }


def _mean(rows_FB: np.ndarray, runs: int) -> Mean | None:
    """Of the first `runs` rows; or of their difference from the other rows, where there are others."""
    if len(rows_FB) == runs:
        return bootstrap_mean(rows_FB)
    found = mean_difference(rows_FB[runs:], rows_FB[:runs])
    scenes = np.isfinite(rows_FB[:runs]).any(0) & np.isfinite(rows_FB[runs:]).any(0)
    return found and Mean(int(scenes.sum()), found.after - found.before, found.low, found.high)


def markdown(rows: Mapping[str, Mapping[str, Mean | None]]) -> str:
    """Slices as a markdown table: mean and 95 % interval; scenes are those that have the first metric."""
    metrics = list(next(iter(rows.values())))
    lines = ["| slice | scenes | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 2) + "|"]
    for name, means in rows.items():
        cells = ["–" if m is None else f"{m.value:.3f} [{m.low:.3f}, {m.high:.3f}]" for m in means.values()]
        first = means[metrics[0]]
        lines.append(f"| {name} | {0 if first is None else first.num_scenes} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
