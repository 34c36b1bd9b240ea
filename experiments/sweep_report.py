"""A sweep's results for people: tables, `report.html`, and beside it `results.json` and `tb/`."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import rich.table
from matplotlib.figure import Figure

from experiments.bootstrap import Difference
from experiments.hparams import write_tensorboard
from experiments.report import panels, smooth
from experiments.sweep_results import Arm, Band, Estimate, Results, as_json
from experiments.sweep_trial import record_path
from gvcot.config import dump
from gvcot.run_dir import write_atomic

NONE = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows; the first column names each."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def rich(self) -> rich.table.Table:
        """For the terminal."""
        table = rich.table.Table(*self.head, title=self.title, show_lines=True)
        for row in self.rows:
            table.add_row(*row)
        return table


def write_report(results: Results, found: Sequence[Table]) -> Path:
    """Write results.json, tb/ and report.html (with tables) into the sweep's folder; the path of the last."""
    root = results.root
    write_atomic(root / "results.json", json.dumps(as_json(results), indent=1) + "\n")
    write_tensorboard(results)
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments"), autoescape=True, trim_blocks=True
    ).get_template("sweep.html")
    page = template.render(
        title=f"gvcot sweep: {results.config.name}",
        subtitle=subtitle(results),
        tables=found,
        curves=embedded(plot_bands(results)),
        config=dump(results.config),
        trials=[(trial.name, trial.state, f"{trial.name}/report.html") for trial in results.trials],
    )
    write_atomic(root / "report.html", page)
    return root / "report.html"


def tables(results: Results) -> list[Table]:
    """Arms, comparisons, costs of rewards, and what went wrong; those that have rows."""
    found = [arms_table(results), comparison_table(results), scoring_table(results), trouble_table(results)]
    return [table for table in found if table.rows]


def arms_table(results: Results) -> Table:
    """A row per arm: mean, 95 % interval and each seed's value of every metric, and time."""
    metrics = results.config.metric
    head = ["arm", "seeds", *metrics, "s / step", "min"]
    rows = [
        [
            arm.name,
            f"{len(arm.done)} of {len(arm.trials)}",
            *(estimate_cell(arm.estimates[metric]) for metric in metrics),
            number(arm.seconds_per_step(), 2),
            number(minutes(arm), 1),
        ]
        for arm in results.arms.values()
    ]
    return Table("mean [95 % interval] and each seed's value", head, rows)


def comparison_table(results: Results) -> Table:
    """A row per comparison of the sweep's."""
    rows = []
    for c, found in zip(results.config.compare, results.differences, strict=True):
        values = [NONE] * 3 if found is None else [f"{found.after:.3f}", f"{found.before:.3f}", gap(found)]
        rows.append([c.metric, c.arm, c.against, *values, verdict(found)])
    head = ["metric", "arm", "against", "in arm", "in against", "difference", "higher in arm"]
    return Table("differences, scene by scene, with 95 % intervals", head, rows)


def scoring_table(results: Results) -> Table:
    """A row per reward: what scoring it takes."""
    step = next((arm.seconds_per_step() for arm in results.arms.values()), None)
    rows = [
        [name, f"{1000 * seconds:.1f}", NONE if step is None else f"{seconds / step:.2%}"]
        for name, seconds in results.scoring.items()
    ]
    return Table("what scoring takes", ["reward", "ms / step", "of a step"], rows)


def trouble_table(results: Results) -> Table:
    """Trials that failed or did not end, and metrics that no run has."""
    rows = [[f"metric {name}", "unknown", hint] for name, hint in results.unknown().items()]
    for trial in results.trials:
        if trial.state != "done":
            log = record_path(results.root, trial.name).with_suffix(".log")
            told = f"{trial.error}\n{log}" if trial.state == "failed" else ""
            rows.append([trial.name, trial.state, told])
    return Table("what is missing", ["trial", "state", "why"], rows)


def subtitle(results: Results) -> str:
    """How much of the sweep is there."""
    done = sum(trial.state == "done" for trial in results.trials)
    config = results.config
    return f"{config.command} {config.recipe} · {done} of {len(results.trials)} trials finished"


def estimate_cell(found: Estimate | None) -> str:
    """In lines: the mean, its interval where there is one, each seed's value where there are several."""
    if found is None:
        return NONE
    lines = [f"{found.mean:.3f}"]
    if found.low is not None and found.high is not None:
        lines.append(f"[{found.low:.3f}, {found.high:.3f}]")
    if len(found.by_seed) > 1:
        lines.append(", ".join(f"{value:.3f}" for value in found.by_seed.values()))
    return "\n".join(lines)


def gap(found: Difference) -> str:
    """The difference and its interval."""
    return f"{found.after - found.before:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def verdict(found: Difference | None) -> str:
    """What an interval says of a difference's sign."""
    if found is None:
        return NONE
    if found.low > 0:
        return "yes"
    return "no, lower" if found.high < 0 else "not shown"


def number(value: float | None, digits: int) -> str:
    """A number, or a dash for none."""
    return NONE if value is None else f"{value:.{digits}f}"


def minutes(arm: Arm) -> float | None:
    """Mean wall-clock time of the arm's runs, in minutes."""
    seconds = arm.seconds()
    return None if seconds is None else seconds / 60


def plot_bands(results: Results) -> Figure | None:
    """A panel per metric: each arm's mean, and a band from its lowest to its highest run.

    Long curves are smoothed over a twentieth. None where no run has a curve.
    """
    wanted = [*results.config.metric, *results.config.curves]
    bands = {m: {a.name: b for a in results.arms.values() if (b := a.band(m))} for m in wanted}
    bands = {metric: arms for metric, arms in bands.items() if arms}
    if not bands:
        return None
    names = list(results.arms)
    figure, axes = panels(list(bands))
    for axis, arms in zip(axes, bands.values(), strict=True):
        for name, band in arms.items():
            color = f"C{names.index(name) % 10}"
            style = "-" if names.index(name) < 10 else "--"
            mean_n, low_n, high_n = smoothed(band)
            axis.plot(band.step_n, mean_n, style, color=color, linewidth=1.6, label=name)
            if band.num_runs > 1:
                axis.fill_between(band.step_n, low_n, high_n, color=color, alpha=0.15, linewidth=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def smoothed(band: Band) -> Sequence[np.ndarray]:
    """Its mean, low and high."""
    return [smooth(line_n, len(line_n) / 20) for line_n in (band.mean_n, band.low_n, band.high_n)]


def embedded(figure: Figure | None) -> str | None:
    """A figure as a base64 PNG."""
    if figure is None:
        return None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return base64.b64encode(buffer.getvalue()).decode()
