from __future__ import annotations

import json
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from experiments.report import build_report, group_by_area, panels, read_evaluations, smooth
from gvcot.errors import DataError
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker

pytestmark = pytest.mark.filterwarnings("default")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    name: str = "<b>bold</b> & co"


class Links(HTMLParser):
    """Collects what a page would load, and its image captions."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def evaluation(run: Path, step: int, **metrics: float) -> None:
    (run / "evals").mkdir(exist_ok=True)
    record = {"step": step, "name": "scenes/bench", "metrics": metrics}
    (run / "evals" / f"bench_{step}.json").write_text(json.dumps(record))


def test_a_report_shows_results_curves_pictures_and_loads_nothing(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "tiny", Run(), seed=1)
    with Tracker(run.path) as tracker:
        for step in range(1, 5):
            tracker.log(step, {"reward/mask_iou": step / 10, "loss/total": float("nan")})
        tracker.images(4, "samples/val", np.zeros((4, 6, 3), np.uint8))
    evaluation(run.path, 0, mask_iou=0.25)
    evaluation(run.path, 4, mask_iou=0.75)
    page = build_report(run.path).read_text()
    links = Links()
    links.feed(page)
    # Curves of the areas reward and health (loss is all NaN, which health counts), and one picture.
    assert len(links.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in links.sources)
    assert "+0.5" in page
    assert "samples-val, step 4" in page
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in page
    assert "<b>bold</b>" not in page


def test_a_run_that_has_not_logged_yet_has_a_report(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "tiny", Run())
    page = build_report(run.path).read_text()
    assert "No metrics were logged yet" in page
    assert "No evaluation was written" in page


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run"):
        build_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_evaluations_compare_first_and_last_step(tmp_path: Path) -> None:
    for step, iou in [(0, 0.5), (100, 0.6), (20, 0.4)]:
        evaluation(tmp_path, step, mask_iou=iou)
    (table,) = read_evaluations(tmp_path)
    assert table.steps == [0, 20, 100]
    assert [(row.metric, row.cells, row.change) for row in table.rows] == [
        ("mask_iou", ["0.5", "0.4", "0.6"], "+0.1")
    ]


def test_metrics_are_grouped_by_area_without_nulls() -> None:
    areas = group_by_area([{"step": 1, "a/x": 1.0, "b/y": None}, {"step": 2, "a/x": 3.0, "b/y": 5.0}])
    assert areas["a"]["a/x"].tolist() == [[1, 1], [2, 3]]
    assert areas["b"]["b/y"].tolist() == [[2, 5]]


def test_smoothing_has_no_start_bias_and_a_hand_computed_case() -> None:
    assert smooth(np.full(5, 3.0), 10).tolist() == pytest.approx([3.0] * 5)
    # decay 1/2: 2; (2/2 + 5) / (1/2 + 1) = 4
    assert smooth(np.array([2.0, 5.0]), 2).tolist() == pytest.approx([2.0, 4.0])


def test_only_panels_with_a_curve_are_shown() -> None:
    figure, axes = panels(["a", "b", "c", "d"])
    assert [axis.get_title() for axis in axes] == ["a", "b", "c", "d"]
    assert [axis.get_title() for axis in figure.axes if axis.axison] == ["a", "b", "c", "d"]
