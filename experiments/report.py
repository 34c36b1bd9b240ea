"""report.html of a run: one self-contained page that can be mailed or attached to an issue."""

from __future__ import annotations

import base64
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gvcot.config import load_dump
from gvcot.errors import DataError
from gvcot.run_dir import write_atomic
from gvcot.tracking import read_metrics
from rl.alarms import rings_of
from rl.config import RLConfig

SHEETS_PER_TAG = 4
"""Pictures of one kind that are embedded, evenly spread over the run."""

COLUMNS = 3
"""Panels per row of a figure."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of an evaluation."""

    metric: str
    cells: list[str]
    change: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation that the run made at several steps, as a table."""

    name: str
    steps: list[int]
    rows: list[Row]
    compared: bool


@dataclass(frozen=True, slots=True)
class Sheet:
    """One embedded picture."""

    caption: str
    png: str


def build_report(run_dir: Path) -> Path:
    """Writes `report.html` into a run's folder and returns its path.

    Raises:
        DataError: the folder is not a run.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise DataError(f"{run_dir} is not a run: expected a folder with a config.yaml, such as runs/tiny")
    metrics = read_metrics(run_dir)
    origin = _origin(run_dir)
    git = origin.pop("git", None) or {}
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments"), autoescape=True, trim_blocks=True
    ).get_template("report.html")
    page = template.render(
        title=_title(run_dir),
        subtitle=_subtitle(metrics, origin, git),
        evaluations=read_evaluations(run_dir),
        alarms=read_alarms(run_dir, metrics),
        curves=[(area, plot_area(series)) for area, series in group_by_area(metrics).items()],
        sheets=_sheets(run_dir),
        config=(run_dir / "config.yaml").read_text(),
        provenance=yaml.safe_dump(origin, sort_keys=False),
        diff=git.get("diff"),
    )
    write_atomic(run_dir / "report.html", page)
    return run_dir / "report.html"


def read_evaluations(run_dir: Path) -> list[Evaluation]:
    """Tables of `evals/*.json` ({step, name, metrics}), one per name; first and last step are compared."""
    by_name: dict[str, dict[int, Mapping[str, float]]] = defaultdict(dict)
    for path in sorted((run_dir / "evals").glob("*.json")):
        record = json.loads(path.read_text())
        by_name[record["name"]][record["step"]] = record["metrics"]
    return [_evaluation(name, by_step) for name, by_step in sorted(by_name.items())]


def read_alarms(run_dir: Path, metrics: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """What rang in an RL run, in words; None for other runs."""
    path = run_dir / "config.yaml"
    if "alarms" not in yaml.safe_load(path.read_text()):
        return None
    return [str(ring) for ring in rings_of(load_dump(RLConfig, path).active_alarms(), metrics)]


def group_by_area(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Logged lines -> area -> metric name -> (n, 2) array of (step, value); nulls are left out."""
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in metrics:
        for name, value in line.items():
            if name != "step" and value is not None:
                points[name].append((line["step"], value))
    areas: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for name in sorted(points):
        areas[name.partition("/")[0]][name] = np.array(points[name], dtype=float)
    return dict(areas)


def smooth(values: np.ndarray, span: float) -> np.ndarray:
    """Exponential moving average with the start's bias removed: y_t = sum_i d^(t-i) x_i / sum_i d^(t-i),
    with decay d = 1 - 1 / span."""
    decay = 1.0 - 1.0 / max(span, 1.0)
    total, weight, out = 0.0, 0.0, np.empty_like(values)
    for i, value in enumerate(values):
        total, weight = decay * total + value, decay * weight + 1.0
        out[i] = total / weight
    return out


def panels(metrics: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each metric's curve over steps, and these panels."""
    num_rows = math.ceil(len(metrics) / COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.6 * num_rows), layout="constrained")
    axes: list[Axes] = list(figure.subplots(num_rows, COLUMNS, squeeze=False).flat)
    for axis, name in zip(axes, metrics, strict=False):  # the last row may have panels to spare
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    for axis in axes[len(metrics) :]:
        axis.set_axis_off()
    return figure, axes[: len(metrics)]


def plot_area(series: Mapping[str, np.ndarray]) -> str:
    """Small multiples of one area's metrics (raw faint, smoothed bold) as a base64 PNG."""
    figure, axes = panels(list(series))
    for axis, points in zip(axes, series.values(), strict=True):
        steps, values = points.T
        marker = "." if len(steps) < 30 else None
        axis.plot(steps, values, color="#c2185b", alpha=0.3, linewidth=1, marker=marker)
        axis.plot(steps, smooth(values, len(values) / 20), color="#c2185b", linewidth=1.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return base64.b64encode(buffer.getvalue()).decode()


def _evaluation(name: str, by_step: Mapping[int, Mapping[str, float]]) -> Evaluation:
    steps = sorted(by_step)
    shown = steps if len(steps) <= 4 else [steps[0], steps[len(steps) // 2], steps[-1]]
    names = sorted({metric for values in by_step.values() for metric in values})
    rows = []
    for metric in names:
        first, last = by_step[steps[0]].get(metric), by_step[steps[-1]].get(metric)
        change = "" if first is None or last is None else f"{last - first:+.4g}"
        rows.append(Row(metric, [_number(by_step[step].get(metric)) for step in shown], change))
    return Evaluation(name, shown, rows, compared=len(steps) > 1)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _sheets(run_dir: Path) -> list[Sheet]:
    by_tag: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path in (run_dir / "images").glob("*.png"):
        tag, _, step = path.stem.rpartition(".step_")
        by_tag[tag or path.stem].append((int(step) if tag else 0, path))
    sheets = []
    for tag, found in sorted(by_tag.items()):
        found.sort()
        picked = sorted({round(i) for i in np.linspace(0, len(found) - 1, SHEETS_PER_TAG)})
        for step, path in (found[i] for i in picked):
            caption = f"{tag}, step {step}" if ".step_" in path.name else tag
            sheets.append(Sheet(caption, base64.b64encode(path.read_bytes()).decode()))
    return sheets


def _origin(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "provenance.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _title(run_dir: Path) -> str:
    return f"gvcot run: {run_dir.resolve().name}"


def _subtitle(metrics: Sequence[Mapping[str, Any]], origin: Mapping[str, Any], git: Mapping[str, Any]) -> str:
    parts = [f"{metrics[-1]['step']} steps logged" if metrics else "nothing logged"]
    if "time" in origin:
        parts.append(f"started {origin['time']}")
    if git.get("sha"):
        parts.append(f"commit {git['sha'][:10]}{' with uncommitted changes' if git['dirty'] else ''}")
    return " · ".join(parts)
