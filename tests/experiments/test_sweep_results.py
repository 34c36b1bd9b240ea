"""From the runs of a sweep to its tables, curves and TensorBoard pages."""

# pyright: reportAttributeAccessIssue=false
# protobuf makes its classes at run time

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from experiments import cli
from experiments.evaluate import write_evaluation
from experiments.hparams import varying
from experiments.sweep import SWEEP_FILE, show
from experiments.sweep_config import SweepConfig, plan
from experiments.sweep_report import tables
from experiments.sweep_results import Results, TrialResult, collect, difference
from experiments.sweep_trial import Record, write_record
from gvcot.config import decode, dump
from gvcot.data import scenes
from gvcot.errors import DataError
from rl.probes import Evaluation

pytestmark = pytest.mark.filterwarnings("default")

NAN = float("nan")

IOU = {
    "a-seed0": [0.0, 1.0, 0.2],
    "a-seed1": [0.5, 1.0, 0.6],
    "b-seed0": [0.1, 0.9, NAN],
    "b-seed1": [0.3, 0.3, 0.3],
}
"""Of three scenes at the end. By scene a is .25, 1, .4 and b .2, .6, .3."""


def make(
    root: Path,
    iou: Mapping[str, Sequence[float]] = IOU,
    records: dict[str, Record] | None = None,
    **changes: Any,
) -> Results:
    """A sweep whose runs logged steps 0 to 2, as if it had been run."""
    plain: dict[str, Any] = {
        "name": "test",
        "command": "rl",
        "recipe": "rl/tiny",
        "metric": ["eval/mask_iou", "reward/overall"],
        "arms": {"a": [], "b": ["optim.lr=1e-3", "rewards.format=null", "max_seconds=5"]},
        "seeds": [0, 1],
        "compare": [{"metric": "eval/mask_iou", "arm": "a", "against": "b"}],
    }
    config = decode(SweepConfig, plain | changes)
    for trial, run in plan(config):
        if trial.name not in iou:
            continue
        (root / trial.name).mkdir(exist_ok=True)
        (root / trial.name / "config.yaml").write_text(dump(run))
        value_B = torch.tensor(iou[trial.name])
        lines: list[dict[str, float]] = [
            {"step": 0, "eval/mask_iou": 0.1},
            {"step": 1, "reward/overall": 1 + trial.seed, "time/step": 2.0},
            {"step": 2, "reward/overall": 2 + trial.seed, "time/step": 4.0},
            {"step": 2, "eval/mask_iou": value_B.nanmean().item()},
        ]
        (root / trial.name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        samples = scenes.samples("val", range(len(value_B)))
        write_evaluation(root / trial.name, "val", 2, {}, Evaluation(values={"mask_iou": value_B}), samples)
        record = (records or {}).get(trial.name, Record(state="done", seconds=60.0 * (1 + trial.seed)))
        write_record(root, trial.name, record)
    (root / SWEEP_FILE).write_text(dump(config))
    return collect(config, root)


def test_an_arm_is_the_mean_over_its_seeds_with_an_interval_over_scenes_and_seeds(tmp_path: Path) -> None:
    results = make(tmp_path)
    a, b = (results.arms[arm].estimates["eval/mask_iou"] for arm in "ab")
    assert a is not None
    assert b is not None
    assert a.mean == pytest.approx((0.25 + 1.0 + 0.4) / 3)
    assert b.mean == pytest.approx((0.2 + 0.6 + 0.3) / 3)  # the third scene has one value
    assert a.by_seed == pytest.approx({0: 0.4, 1: 0.7})
    assert a.low is not None
    assert a.high is not None
    assert 0.0 <= a.low < a.mean < a.high <= 1.0
    plain = results.arms["a"].estimates["reward/overall"]
    assert plain == (pytest.approx(2.5), None, None, {0: 2.0, 1: 3.0})
    assert results.arms["a"].seconds_per_step() == pytest.approx(3.0)
    assert results.arms["a"].seconds() == pytest.approx(90.0)
    (difference,) = results.differences
    assert difference is not None
    assert difference.after - difference.before == pytest.approx((0.05 + 0.4 + 0.1) / 3)


def test_one_seed_s_interval_is_over_scenes_alone(tmp_path: Path) -> None:
    results = make(tmp_path, {"a-seed0": [0.5, 0.5], "a-seed1": [0.7, 0.7]}, arms={"a": []}, compare=[])
    found = results.arms["a"].estimates["eval/mask_iou"]
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.7))  # the seeds differ
    alone = make(tmp_path, {"a-seed0": [0.5, 0.5]}, arms={"a": []}, compare=[], seeds=[0])
    assert alone.arms["a"].estimates["eval/mask_iou"] == (pytest.approx(0.5),) * 3 + (
        {0: pytest.approx(0.5)},
    )


def test_a_band_reaches_from_the_lowest_seed_to_the_highest(tmp_path: Path) -> None:
    band = make(tmp_path).arms["a"].band("reward/overall")
    assert band is not None
    assert band.step_n.tolist() == [1, 2]
    assert (band.low_n.tolist(), band.mean_n.tolist(), band.high_n.tolist()) == ([1, 2], [1.5, 2.5], [2, 3])


def test_what_did_not_finish_counts_nowhere_and_is_named(tmp_path: Path) -> None:
    records = {
        "a-seed1": Record(state="running", seconds=0.0),
        "b-seed0": Record(state="failed", seconds=9.0, error="RewardError: no judge"),
    }
    iou = {name: values for name, values in IOU.items() if name != "b-seed1"}
    results = make(tmp_path, iou, records)
    a, b = (results.arms[arm].estimates["eval/mask_iou"] for arm in "ab")
    assert a is not None
    assert a.by_seed == pytest.approx({0: 0.4})
    assert b is None
    assert results.differences == [None]
    trouble = {name: (state, why) for name, state, why in tables(results)[-1].rows}
    assert trouble["a-seed1"][0] == "unfinished"
    assert trouble["b-seed1"][0] == "waiting"
    assert trouble["b-seed0"][0] == "failed"
    assert "no judge" in trouble["b-seed0"][1]
    assert "b-seed0.log" in trouble["b-seed0"][1]


def test_a_metric_that_nobody_logged_is_answered_with_the_closest(tmp_path: Path) -> None:
    results = make(tmp_path, metric=["eval/mask_iuo"], compare=[])
    (row,) = tables(results)[-1].rows
    assert row[0] == "metric eval/mask_iuo"
    assert "did you mean 'eval/mask_iou'" in row[2]


def test_arms_of_different_scenes_are_not_compared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="different scenes; give all arms the same eval settings"):
        make(tmp_path, IOU | {name: [0.5, 0.5] for name in ("b-seed0", "b-seed1")})


def test_arms_are_compared_by_seeds_that_both_have() -> None:
    def trial(seed: int, level: float) -> TrialResult:
        values = np.full(8, level)
        return TrialResult(
            name=f"t{seed}", seed=seed, state="done", scene_ids=["a"] * 8, scenes={"m": values}
        )

    whole, unfinished = [trial(0, 0.2), trial(1, 0.8)], [trial(0, 0.3)]
    found = difference(unfinished, whole, "m")
    assert found is not None
    assert found.after - found.before == pytest.approx(0.1)  # by means over all seeds: -.2


def test_a_verdict_needs_an_interval_on_one_side_of_zero(tmp_path: Path) -> None:
    def shown(high: float, low: float) -> str:
        folder = tmp_path / f"{high}-{low}"
        folder.mkdir()
        rng = np.random.default_rng(0)
        noisy = {name: (0.2 * rng.random(16)).tolist() for name in IOU}
        shift = {"a": high, "b": low}
        iou = {name: [v + shift[name[0]] for v in values] for name, values in noisy.items()}
        (row,) = tables(make(folder, iou))[1].rows
        return row[-1]

    assert (shown(0.5, 0.2), shown(0.2, 0.5), shown(0.2, 0.2)) == ("yes", "no, lower", "not shown")


def test_show_prints_the_table_and_writes_everything_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    (tmp_path / "tb").mkdir()
    (tmp_path / "tb" / "old").write_text("")
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["sweep", "show", str(tmp_path)])
    assert not exit_info.value.code
    assert "0.550" in capsys.readouterr().out
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["arms"]["a"]["metrics"]["eval/mask_iou"]["by_seed"] == pytest.approx({"0": 0.4, "1": 0.7})
    assert stored["arms"]["b"]["trials"]["1"] == {"state": "done", "seconds": 120.0, "error": ""}
    assert stored["compare"][0]["difference"]["mean"] == pytest.approx(0.55 / 3)
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "0.550" in page
    assert not (tmp_path / "tb" / "old").exists()


def test_a_folder_that_is_no_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a sweep: expected a folder with a sweep\.yaml"):
        show(tmp_path)


@pytest.fixture
def board(tmp_path: Path) -> Callable[[], tuple[EventMultiplexer, Context]]:
    """TensorBoard's own readers of the sweep's `tb`."""

    def read() -> tuple[EventMultiplexer, Context]:
        events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "tb"))
        events.Reload()
        return events, Context(TBContext(data_provider=MultiplexerDataProvider(events, str(tmp_path / "tb"))))

    return read


def test_tensorboard_s_hparams_page_has_the_settings_of_all_arms(
    tmp_path: Path, board: Callable[[], tuple[EventMultiplexer, Context]], capsys: pytest.CaptureFixture[str]
) -> None:
    records = {"b-seed1": Record(state="failed", seconds=1.0, error="x")}
    make(tmp_path, records=records)
    show(tmp_path)
    _, context = board()
    request = api_pb2.GetExperimentRequest(include_metrics=True)
    page = get_experiment.Handler(RequestContext(), context, "", request).run()
    assert {h.name for h in page.hparam_infos} == {
        "arm",
        "seed",
        "optim.lr",
        "max_seconds",  # only b has one
        "rewards.format.type",  # only a has one
        "rewards.format.weight",
    }
    assert {m.name.tag for m in page.metric_infos} == {"eval/mask_iou", "reward/overall"}
    infos = {h.name: h for h in page.hparam_infos}
    assert infos["optim.lr"].type == api_pb2.DATA_TYPE_FLOAT64
    assert infos["optim.lr"].differs
    assert infos["rewards.format.type"].type == api_pb2.DATA_TYPE_STRING

    columns = [api_pb2.ColParams(metric=m.name) for m in page.metric_infos]
    request = api_pb2.ListSessionGroupsRequest(
        col_params=columns,
        slice_size=99,
        include_metrics=True,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_UNKNOWN],
    )
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    rows = {group.name: group for group in groups}
    assert set(rows) == set(IOU)
    lrs = {name: row.hparams["optim.lr"].number_value for name, row in rows.items()}
    assert lrs == pytest.approx({"a-seed0": 2e-4, "a-seed1": 2e-4, "b-seed0": 1e-3, "b-seed1": 1e-3})
    assert rows["b-seed1"].hparams["seed"].number_value == 1
    assert rows["a-seed0"].hparams["rewards.format.type"].string_value == "format"
    assert "rewards.format.type" not in rows["b-seed0"].hparams
    values = {m.name.tag: m.value for m in rows["a-seed1"].metric_values}
    assert values == pytest.approx({"eval/mask_iou": 0.7, "reward/overall": 3.0})
    assert rows["b-seed1"].sessions[0].status == api_pb2.STATUS_FAILURE


def test_tensorboard_shows_each_arm_s_mean_and_band(
    tmp_path: Path, board: Callable[[], tuple[EventMultiplexer, Context]], capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    show(tmp_path)
    events, _ = board()

    def curve(run: str) -> list[tuple[int, float]]:
        return [
            (event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(run, "reward/overall")
        ]

    assert curve("arms/a/low") == [(1, 1.0), (2, 2.0)]
    assert curve("arms/a/mean") == [(1, 1.5), (2, 2.5)]
    assert curve("arms/a/high") == [(1, 2.0), (2, 3.0)]


def test_a_setting_has_one_type_in_all_runs() -> None:
    configs: dict[str, dict[str, Any]] = {
        "x": {"name": "x", "seed": 0, "lr": 1, "on": True, "same": 3, "mixed": 1, "list": [1], "gone": None},
        "y": {
            "name": "y",
            "seed": 0,
            "lr": 0.5,
            "on": False,
            "same": 3,
            "mixed": "auto",
            "list": [2],
            "only": 1,
        },
    }
    assert varying(configs) == {
        "x": {"seed": 0.0, "lr": 1.0, "on": True, "mixed": "1", "list": "[1]"},
        "y": {"seed": 0.0, "lr": 0.5, "on": False, "mixed": "auto", "list": "[2]", "only": 1.0},
    }
