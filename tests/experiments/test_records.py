"""Evaluations kept in small files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.bootstrap import compare
from experiments.cli import app
from experiments.records import condense, read_record, read_values
from experiments.slices import slices
from gvcot.errors import DataError


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    samples = {
        "id": ["a", "b", "c"],
        "task": ["color", "color", "removal"],
        "referral": ["spatial", "property", "spatial"],
        "values": {"mask_iou": [0.123456, 1.0, None], "where": [1, 0, 1], "canary": [0.5, 0.5, 0.5]},
    }
    metrics = {"mask_iou": 0.561728, "where": 0.667, "canary": 0.5}
    path = tmp_path / "val.json"
    path.write_text(json.dumps({"name": "val", "step": 7, "metrics": metrics, "samples": samples}))
    return path


def test_a_condensed_evaluation_compares_and_slices_like_the_whole(evaluation: Path, tmp_path: Path) -> None:
    small = tmp_path / "kept" / "val.json.gz"
    condense(evaluation, small)
    ids, values = read_values(small)
    assert ids == ["a", "b", "c"]
    np.testing.assert_allclose(values["mask_iou"], [0.1235, 1.0, np.nan])
    assert sorted(values) == ["mask_iou", "where"]
    assert read_record(small)["step"] == 7
    difference = compare(evaluation, small, ["where"])["where"]
    assert difference.before == difference.after == pytest.approx(2 / 3)
    color = slices([small], None, ["task"])["color"]["where"]
    assert color is not None
    assert (color.num_scenes, color.value) == (2, 0.5)


def test_the_same_input_gives_the_same_bytes(evaluation: Path, tmp_path: Path) -> None:
    for name in ("one.json.gz", "two.json.gz"):
        condense(evaluation, tmp_path / name, ["where"])
    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "two.json.gz").read_bytes()


def test_metrics_can_be_chosen_on_the_command_line(evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.json"
    result = CliRunner().invoke(app, ["condense", str(evaluation), str(out), "--metric", "canary"])
    assert result.exit_code == 0, result.output
    assert list(json.loads(out.read_text())["samples"]["values"]) == ["canary"]


def test_a_metric_that_is_not_there_is_named(evaluation: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'where'"):
        condense(evaluation, tmp_path / "small.json", ["wher"])


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b'{"samples": {}}', b"\x1f\x8bcut"])
@pytest.mark.parametrize("name", ["broken.json", "broken.json.gz"])
def test_files_that_are_no_evaluation_are_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="is not the JSON of an evaluation"):
        read_values(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_values(tmp_path / "none.json")
