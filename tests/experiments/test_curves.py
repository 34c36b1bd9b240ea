"""Curves of several runs in one picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import cli
from experiments.curves import arm_of, mean_curve, plot_curves, read_curves
from gvcot.errors import DataError


def logged(folder: Path, name: str, **series: list[float]) -> Path:
    run = folder / name
    run.mkdir()
    lines = [
        {"step": 1 + i, **{key.replace("__", "/"): values[i] for key, values in series.items()}}
        for i in range(len(next(iter(series.values()))))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_seeds_are_one_arm() -> None:
    assert [arm_of(Path(name)) for name in ("rl-0", "rl-12", "rl", "7")] == ["rl", "rl", "rl", "7"]


def test_a_mean_is_over_the_steps_that_all_seeds_have() -> None:
    mean = mean_curve([np.array([[1, 0.0], [2, 0.5]]), np.array([[1, 1.0], [2, 1.5], [3, 9.0]])])
    assert mean.tolist() == [[1.0, 0.5], [2.0, 1.0]]


def test_a_panel_shows_every_seed_and_the_mean_of_its_arm(tmp_path: Path) -> None:
    runs = [
        logged(tmp_path, "rl-0", reward__mask_iou=[0.1, 0.3], loss__total=[2.0, 1.0]),
        logged(tmp_path, "rl-1", reward__mask_iou=[0.3, 0.5], loss__total=[2.0, 1.0]),
        logged(tmp_path, "shuffled", reward__mask_iou=[0.1, 0.1]),
    ]
    curves = read_curves(runs, ["reward/mask_iou", "loss/total"])
    assert curves["reward/mask_iou"].keys() == {"rl", "shuffled"}
    assert curves["loss/total"].keys() == {"rl"}
    axis = plot_curves(curves).axes[0]
    drawn = [np.asarray(line.get_ydata()).tolist() for line in axis.lines if len(line.get_xdata())]  # pyright: ignore[reportArgumentType]
    assert drawn == [
        pytest.approx([0.1, 0.3]),
        pytest.approx([0.3, 0.5]),
        pytest.approx([0.2, 0.4]),
        pytest.approx([0.1, 0.1]),
    ]


def test_the_command_writes_a_picture_or_names_the_closest_metric(tmp_path: Path) -> None:
    run = logged(tmp_path, "rl-0", reward__mask_iou=[0.1, 0.3])
    out = tmp_path / "curves.png"
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["curves", str(run), "--metric", "reward/mask_iou", "--out", str(out)])
    assert not exit_info.value.code
    assert Image.open(out).size[0] > 100
    with pytest.raises(DataError, match="did you mean 'reward/mask_iou'"):
        read_curves([run], ["reward/mask_iuo"])
    with pytest.raises(DataError, match="logged nothing"):
        read_curves([tmp_path], ["reward/mask_iou"])
