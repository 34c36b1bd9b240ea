"""Paired bootstrap, on cases that can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.bootstrap import (
    Difference,
    compare,
    compare_means,
    first_and_last,
    latest,
    markdown,
    paired,
)
from experiments.cli import app
from gvcot.errors import DataError


def evaluation(path: Path, ids: list[str], **values: list[float | None]) -> Path:
    path.write_text(
        json.dumps({"name": "val", "step": 0, "metrics": {}, "samples": {"id": ids, "values": values}})
    )
    return path


def test_the_same_gain_on_every_scene_is_certain() -> None:
    before = np.array([0.1, 0.5, 0.9])
    assert paired(before, before + 0.25) == pytest.approx((0.5, 0.75, 0.25, 0.25))


def test_two_scenes_of_which_one_gains() -> None:
    # resampled means are 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4
    assert paired(np.zeros(2), np.array([0.0, 1.0])) == (0.0, 0.5, 0.0, 1.0)


def test_pairing_removes_what_scenes_have_in_common() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=400)
    result = paired(before, before + rng.normal(0.1, 0.1, size=400))
    assert result.high - result.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.1)
    assert result.low > 0


def test_scenes_without_both_values_are_left_out() -> None:
    result = paired(np.array([0.0, np.nan, 0.0, 0.2]), np.array([1.0, 5.0, np.nan, 1.2]))
    assert result == pytest.approx((0.1, 1.1, 1.0, 1.0))


def test_the_resampling_is_seeded() -> None:
    before, after = np.zeros(20), np.random.default_rng(1).random(20)
    assert paired(before, after) == paired(before, after)
    assert paired(before, after) != paired(before, after, seed=1)


def test_what_is_not_paired_is_refused() -> None:
    with pytest.raises(DataError, match="got 2 and 3"):
        paired(np.zeros(2), np.zeros(3))
    with pytest.raises(DataError, match="no scene has a value"):
        paired(np.array([np.nan, 1.0]), np.array([1.0, np.nan]))


def test_evaluation_files_are_compared_metric_by_metric(tmp_path: Path) -> None:
    before = evaluation(
        tmp_path / "a.json", ["s0", "s1", "s2"], mask_iou=[0.0, 0.2, None], edit_accuracy=[0.0] * 3
    )
    after = evaluation(
        tmp_path / "b.json", ["s0", "s1", "s2"], mask_iou=[0.5, 0.7, 0.9], edit_accuracy=[0.1] * 3
    )
    result = compare(before, after, ["mask_iou", "edit_accuracy", "unknown"])
    assert list(result) == ["mask_iou", "edit_accuracy"]
    assert result["mask_iou"] == pytest.approx((0.1, 0.6, 0.5, 0.5))


def test_evaluations_of_other_scenes_are_refused(tmp_path: Path) -> None:
    before = evaluation(tmp_path / "a.json", ["s0", "s1"], mask_iou=[0.0, 0.2])
    after = evaluation(tmp_path / "b.json", ["s1", "s0"], mask_iou=[0.0, 0.2])
    with pytest.raises(DataError, match="not of the same scenes"):
        compare(before, after, ["mask_iou"])


def test_a_run_s_first_and_last_evaluation_are_compared(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    for name in ("val.step_0", "val.step_9", "val.step_100", "bench.step_500"):
        (tmp_path / "evals" / f"{name}.json").touch()
    found = first_and_last(tmp_path, "val")
    assert [p.name for p in found] == ["val.step_0.json", "val.step_100.json"]
    with pytest.raises(DataError, match="1 evaluations on bench"):
        first_and_last(tmp_path, "bench")


def test_the_ends_of_runs_are_compared_with_another_run_s_end_or_with_a_file(tmp_path: Path) -> None:
    for run, first, last in (("rl", 0.2, 0.6), ("sft", 0.2, 0.5)):
        (tmp_path / run / "evals").mkdir(parents=True)
        evaluation(tmp_path / run / "evals" / "val.step_0.json", ["s0", "s1"], mask_iou=[first] * 2)
        evaluation(tmp_path / run / "evals" / "val.step_9.json", ["s0", "s1"], mask_iou=[last] * 2)
    for against in ("sft", "sft/evals/val.step_9.json"):
        command = ["compare", str(tmp_path / "rl"), "--against", str(tmp_path / against)]
        shown = CliRunner().invoke(app, [*command, "--metric", "mask_iou"])
        assert "0.500 → 0.600 (+0.100 [+0.100, +0.100])" in shown.output
    with pytest.raises(DataError, match="neither a run with an evaluation on val"):
        latest(tmp_path, "val")


def test_means_of_runs_have_intervals_over_runs_as_well(tmp_path: Path) -> None:
    """Hand-computed: scenes agree, so all the spread is that of drawing .6 and .8 twice."""
    before = [evaluation(tmp_path / "a.json", ["s0", "s1"], mask_iou=[0.5, 0.5])]
    after = [
        evaluation(tmp_path / f"{i}.json", ["s0", "s1"], mask_iou=[v, v]) for i, v in enumerate((0.6, 0.8))
    ]
    result = compare_means(before, after, ["mask_iou", "unknown"])
    assert list(result) == ["mask_iou"]
    assert result["mask_iou"] == pytest.approx((0.5, 0.7, 0.1, 0.3))
    other = evaluation(tmp_path / "c.json", ["s0", "s9"], mask_iou=[0.5, 0.5])
    with pytest.raises(DataError, match=r"c\.json and .* are not of the same scenes"):
        compare_means(before, [other], ["mask_iou"])
    command = ["compare", *map(str, after), "--against", str(before[0]), "--metric", "mask_iou"]
    shown = CliRunner().invoke(app, command).output
    assert "0.500 → 0.800 (+0.300 [+0.300, +0.300])" in shown
    assert "| mean of the runs | 0.500 → 0.700 (+0.200 [+0.100, +0.300]) |" in shown


def test_a_scene_that_some_runs_lack_is_the_mean_of_the_others(tmp_path: Path) -> None:
    """Hand-computed: s0 is .5 -> (.6 + .8) / 2; s1 has a value in one run of each side: .1 -> .2; s2 in none
    before."""
    before = [
        evaluation(tmp_path / "a.json", ["s0", "s1", "s2"], w=[0.5, 0.1, None]),
        evaluation(tmp_path / "b.json", ["s0", "s1", "s2"], w=[0.5, None, None]),
    ]
    after = [
        evaluation(tmp_path / "c.json", ["s0", "s1", "s2"], w=[0.6, None, 0.9]),
        evaluation(tmp_path / "d.json", ["s0", "s1", "s2"], w=[0.8, 0.2, 0.9]),
    ]
    result = compare_means(before, after, ["w"])["w"]
    assert result[:2] == pytest.approx((0.3, 0.45))
    assert 0.05 < result.low < 0.15 < result.high < 0.31
    nothing = evaluation(tmp_path / "e.json", ["s0", "s1", "s2"], w=[None, None, 0.4])
    with pytest.raises(DataError, match="w: no scene has a value on both sides"):
        compare_means([nothing], [before[0]], ["w"])


def test_differences_are_written_as_a_table() -> None:
    lines = markdown({"runs/a": {"mask_iou": Difference(0.5, 0.6, 0.05, 0.15)}}).split("\n")
    assert lines[0] == "| run | mask_iou |"
    assert lines[2] == "| runs/a | 0.500 → 0.600 (+0.100 [+0.050, +0.150]) |"
