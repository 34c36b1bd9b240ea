from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gvcot.tracking import NON_FINITE, Tracker, read_metrics

pytestmark = pytest.mark.filterwarnings("default")


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tb"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_scalars_reach_the_file_and_tensorboard_at_once(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.log(1, {"loss/total": 0.5})
        assert read_metrics(tmp_path) == [{"step": 1, "loss/total": 0.5}]
        tracker.log(2, {"loss/total": 0.25})
    assert scalars(tmp_path, "loss/total") == [(1, 0.5), (2, 0.25)]


def test_nan_is_null_and_counted(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.log(1, {"a/x": math.nan, "a/y": math.inf, "a/z": 1.0})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 1, "a/x": None, "a/y": None, "a/z": 1.0, NON_FINITE: 2}
    assert scalars(tmp_path, NON_FINITE) == [(1, 2.0)]


def test_resuming_cuts_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    sheet = np.zeros((4, 6, 3), np.uint8)
    with Tracker(tmp_path) as tracker:
        for step in range(1, 6):
            tracker.log(step, {"a/x": step})
            tracker.images(step, "samples/val", sheet)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "a/')  # torn by the crash
    with Tracker(tmp_path, resume_step=3) as tracker:
        tracker.log(4, {"a/x": 40})
    assert [(m["step"], m["a/x"]) for m in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert scalars(tmp_path, "a/x") == [(1, 1), (2, 2), (3, 3), (4, 40)]
    kept = sorted(p.name for p in (tmp_path / "images").iterdir())
    assert kept == [f"samples-val.step_{i}.png" for i in (1, 2, 3)]


def test_a_run_that_died_before_its_first_checkpoint_logs_its_start_once(tmp_path: Path) -> None:
    for _ in range(2):
        with Tracker(tmp_path, resume_step=0) as tracker:
            tracker.log(0, {"eval/x": 1.0})
    assert read_metrics(tmp_path) == [{"step": 0, "eval/x": 1.0}]
    assert scalars(tmp_path, "eval/x") == [(0, 1.0)]


def test_images_text_layout_and_hparams_appear_with_the_run(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.images(3, "samples/val", np.full((4, 6, 3), 200, np.uint8))
        tracker.text(3, "samples/words", "a **red** circle")
        tracker.layout({"Rewards": {"mean": ["reward/.*/mean"]}})
        tracker.hparams({"lr": 0.1, "tasks": ["color"], "init": None}, {"final/iou": 0.5})
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["samples/val"]
    assert "samples/words/text_summary" in tags["tensors"]
    assert "final/iou" in tags["scalars"]
    assert not [p for p in (tmp_path / "tb").iterdir() if p.is_dir()]
