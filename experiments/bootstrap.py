"""Paired bootstrap over scenes: is the difference between two evaluations more than luck of the draw?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.records import read_values
from gvcot.errors import DataError


class Difference(NamedTuple):
    """Of one metric, after minus before, over the scenes that have both."""

    before: float
    after: float
    low: float
    """Lower end of the 95 % interval of the difference."""

    high: float
    """Its upper end."""


def paired(before_B: np.ndarray, after_B: np.ndarray, *, draws: int = 4000, seed: int = 0) -> Difference:
    """Percentile bootstrap of the mean paired difference, resampling scenes.

    Source: Efron and Tibshirani, 1993, ch. 13.

    Args:
        before_B, after_B: one value per scene, in the same order; NaN where missing.
        draws: bootstrap resamples.
        seed: of the resampling.

    Raises:
        DataError: different numbers of scenes, or no scene that has both.
    """
    if len(before_B) != len(after_B):
        raise DataError(f"paired values must be of the same scenes; got {len(before_B)} and {len(after_B)}")
    both_B = np.isfinite(before_B) & np.isfinite(after_B)
    if not both_B.any():
        raise DataError("no scene has a value both before and after")
    delta_B = after_B[both_B] - before_B[both_B]
    rows = np.random.default_rng(seed).integers(len(delta_B), size=(draws, len(delta_B)))
    low, high = np.quantile(delta_B[rows].mean(1), [0.025, 0.975])
    return Difference(float(before_B[both_B].mean()), float(after_B[both_B].mean()), float(low), float(high))


def compare(before: Path, after: Path, metrics: Sequence[str]) -> dict[str, Difference]:
    """Paired differences of two evaluation files, metric by metric.

    Raises:
        DataError: the files are of different scenes.
    """
    ids_before, values_before = read_values(before)
    ids_after, values_after = read_values(after)
    if ids_before != ids_after:
        raise DataError(f"{before} and {after} are not of the same scenes; evaluate both on one split")
    return {m: paired(values_before[m], values_after[m]) for m in metrics if m in values_before}


def compare_means(
    before: Sequence[Path], after: Sequence[Path], metrics: Sequence[str], *, draws: int = 4000, seed: int = 0
) -> dict[str, Difference]:
    """The mean of some runs against the mean of others, on the same scenes, metric by metric.

    The interval is a hierarchical bootstrap: scenes are resampled (the same for all), and runs on each side,
    so that it also covers what other seeds would have given. A scene's value on one side is the mean over the
    runs that have one there; scenes without a value on both sides are left out.

    Raises:
        DataError: no files, files of different scenes, or no scene with a value on both sides.
    """
    if not before or not after:
        raise DataError("means are compared of at least one run on each side")
    files = [read_values(path) for path in (*before, *after)]
    for path, (ids, _) in zip((*before, *after), files, strict=True):
        if ids != files[0][0]:
            raise DataError(f"{path} and {before[0]} are not of the same scenes; evaluate both on one split")
    out = {}
    for metric in metrics:
        if not all(metric in values for _, values in files):
            continue
        rows_FB = np.stack([values[metric] for _, values in files])
        found = mean_difference(rows_FB[: len(before)], rows_FB[len(before) :], draws=draws, seed=seed)
        if found is None:
            raise DataError(f"{metric}: no scene has a value on both sides")
        out[metric] = found
    return out


def mean_difference(
    first_FB: np.ndarray, second_FB: np.ndarray, *, draws: int = 4000, seed: int = 0
) -> Difference | None:
    """`compare_means` of one metric; None where no scene has a value on both sides.

    Args:
        first_FB, second_FB: values of B scenes by the runs of each side; NaN where missing.
        draws: bootstrap resamples.
        seed: of the resampling.
    """
    both_B = np.isfinite(first_FB).any(0) & np.isfinite(second_FB).any(0)
    if not both_B.any():
        return None
    first_FB, second_FB = first_FB[:, both_B], second_FB[:, both_B]
    rng = np.random.default_rng(seed)
    deltas = []
    for _ in range(draws):
        scene = rng.integers(both_B.sum(), size=both_B.sum())
        first_B, second_B = (
            scene_means(side[rng.integers(len(side), size=len(side))][:, scene])
            for side in (first_FB, second_FB)
        )
        delta_B = (second_B - first_B)[np.isfinite(second_B - first_B)]
        if len(delta_B):
            deltas.append(delta_B.mean())
    low, high = np.quantile(deltas, [0.025, 0.975])
    means = scene_means(first_FB).mean(), scene_means(second_FB).mean()
    return Difference(float(means[0]), float(means[1]), float(low), float(high))


def scene_means(rows_FB: np.ndarray) -> np.ndarray:
    """Mean of each scene (B,) over the runs that have a value of it; NaN where none has."""
    known_FB = np.isfinite(rows_FB)
    total_B, count_B = np.where(known_FB, rows_FB, 0.0).sum(0), known_FB.sum(0)
    return np.where(count_B > 0, total_B / np.maximum(count_B, 1), np.nan)


def first_and_last(folder: Path, split: str) -> tuple[Path, Path]:
    """The evaluations of a run before and after training.

    Raises:
        DataError: the run has fewer than two evaluations of this split.
    """
    found = evaluations(folder, split)
    if len(found) < 2:
        raise DataError(f"{folder} has {len(found)} evaluations on {split}; a comparison needs two")
    return found[0], found[-1]


def latest(path: Path, split: str) -> Path:
    """A run's last evaluation; the file of an evaluation is itself.

    Raises:
        DataError: there is none.
    """
    found = [path] if path.is_file() else evaluations(path, split)
    if not found:
        raise DataError(
            f"{path} is neither a run with an evaluation on {split} nor an evaluation's JSON file"
        )
    return found[-1]


def evaluations(folder: Path, split: str) -> list[Path]:
    """`evals/<split>.step_<N>.json` of a run, by step."""
    found = (folder / "evals").glob(f"{split}.step_*.json")
    return sorted(found, key=lambda path: int(path.stem.rpartition("_")[2]))


def markdown(rows: dict[str, dict[str, Difference]]) -> str:
    """Runs and their differences as a markdown table: before -> after, change and its 95 % interval."""
    metrics = list(next(iter(rows.values())))
    lines = ["| run | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for run, differences in rows.items():
        cells = [
            f"{d.before:.3f} → {d.after:.3f} ({d.after - d.before:+.3f} [{d.low:+.3f}, {d.high:+.3f}])"
            for d in differences.values()
        ]
        lines.append(f"| {run} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
