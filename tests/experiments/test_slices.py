"""Means by task and referral, on cases that can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.slices import Mean, bootstrap_mean, slices
from gvcot.errors import DataError

TASKS = ["color", "color", "background", "removal"]
REFERRALS = ["spatial", "property", "spatial", "spatial"]


def evaluation(path: Path, ids: str = "abcd", **values: list[float | None]) -> Path:
    samples = {"id": list(ids), "task": TASKS, "referral": REFERRALS, "values": values}
    path.write_text(json.dumps({"name": "val", "step": 0, "metrics": {}, "samples": samples}))
    return path


def test_slices_hold_the_scenes_of_their_kind(tmp_path: Path) -> None:
    file = evaluation(tmp_path / "a.json", mask_iou=[0.0, 1.0, 0.8, 0.6])
    rows = slices([file], ["mask_iou"], ["task", "referral"])
    means = {name: mean["mask_iou"] for name, mean in rows.items()}
    assert {name: (m.num_scenes, pytest.approx(m.value)) for name, m in means.items() if m} == {
        "all": (4, 0.6),
        "localised": (3, 1.6 / 3),
        "background": (1, 0.8),
        "color": (2, 0.5),
        "removal": (1, 0.6),
        "property": (1, 1.0),
        "spatial": (3, 1.4 / 3),
    }


def test_a_missing_score_is_no_zero(tmp_path: Path) -> None:
    file = evaluation(tmp_path / "a.json", where=[None, 1.0, None, None])
    rows = slices([file], ["where"], ["task"])
    assert rows["all"]["where"] == (1, 1.0, 1.0, 1.0)
    assert rows["removal"]["where"] is None


def test_runs_are_averaged_scene_by_scene_and_widen_the_interval() -> None:
    alike = bootstrap_mean(np.full((3, 50), 0.5))
    assert alike == Mean(50, 0.5, 0.5, 0.5)
    apart = bootstrap_mean(np.array([[0.0] * 50, [1.0] * 50]))
    assert apart == Mean(50, 0.5, 0.0, 1.0)  # scenes agree, seeds don't


def test_a_mean_of_two_scenes_has_the_interval_of_two_scenes() -> None:
    assert bootstrap_mean(np.array([[0.0, 1.0]])) == Mean(2, 0.5, 0.0, 1.0)


def test_other_scenes_and_unknown_metrics_are_refused(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a.json", mask_iou=[0.0] * 4)
    second = evaluation(tmp_path / "b.json", ids="abce", mask_iou=[0.0] * 4)
    with pytest.raises(DataError, match="not of the same scenes"):
        slices([first, second], ["mask_iou"], [])
    assert list(slices([first], None, [])["all"]) == ["mask_iou"]
    with pytest.raises(DataError, match="it has: mask_iou"):
        slices([first], ["iou"], [])


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    file = evaluation(tmp_path / "a.json", mask_iou=[0.0, 1.0, 0.8, 0.6], where=[None] * 4)
    out = CliRunner().invoke(app, ["slices", str(file), "--metric", "mask_iou", "--metric", "where"]).stdout
    assert "| color | 2 | 0.500 [0.000, 1.000] | – |" in out


def test_differences_from_other_runs_are_of_scenes_that_both_have(tmp_path: Path) -> None:
    ours = evaluation(tmp_path / "a.json", where=[1.0, 1.0, None, 0.5])
    first = evaluation(tmp_path / "b.json", where=[0.0, 0.5, 1.0, None])
    second = evaluation(tmp_path / "c.json", where=[0.0, 1.0, 1.0, None])
    rows = slices([ours], ["where"], ["task"], against=[first, second])
    found = rows["color"]["where"]
    assert found is not None
    assert (found.num_scenes, found.value) == (2, pytest.approx(0.625))  # 1 - 0 and 1 - .75
    assert found.low <= 0.25 + 1e-9
    assert found.high == pytest.approx(1.0)
    assert rows["background"]["where"] is rows["removal"]["where"] is None


def test_one_metric_minus_another_is_taken_scene_by_scene(tmp_path: Path) -> None:
    file = evaluation(tmp_path / "a.json", probed=[1.0, 1.0, 0.9, None], where=[0.0, 1.0, None, 0.5])
    found = slices([file], ["probed"], ["task"], minus="where")["all"]["probed"]
    assert found == Mean(2, 0.5, 0.0, 1.0)
    shown = CliRunner().invoke(app, ["slices", str(file), "--metric", "probed", "--minus", "where"])
    assert "| all | 2 | 0.500" in shown.output
