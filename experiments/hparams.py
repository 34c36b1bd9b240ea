"""A sweep in TensorBoard: its HParams page, and each arm's mean, lowest and highest run.

    tb/                              which settings and metrics there are
    tb/trials/<trial>/               a run's settings, and its metrics over training
    tb/arms/<arm>/{mean,low,high}/   an arm's metrics over training

PyTorch's writer describes an experiment anew in every run, by that run's settings. TensorBoard reads one of
these descriptions and shows no setting that it lacks. Here there is one, with the settings of all runs.
"""

# pyright: reportAttributeAccessIssue=false
# protobuf makes its classes at run time

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from experiments.sweep_results import Results

Value = bool | float | str

STATUS = {"done": api_pb2.STATUS_SUCCESS, "failed": api_pb2.STATUS_FAILURE}
"""Of a trial's state; any other is unknown to TensorBoard."""


def write_tensorboard(results: Results) -> None:
    """Write `tb/` anew."""
    folder = results.root / "tb"
    shutil.rmtree(folder, ignore_errors=True)
    begun = [trial for trial in results.trials if trial.config]
    arm_of = {trial.name: arm.name for arm in results.arms.values() for trial in arm.trials}
    settings = varying({trial.name: trial.config | {"arm": arm_of[trial.name]} for trial in begun})
    metrics = [*results.config.metric, *results.config.curves]
    write_events(folder, [(0, experiment(settings, results.config.metric))])
    for trial in begun:
        status = STATUS.get(trial.state, api_pb2.STATUS_UNKNOWN)
        start = summary_v2.hparams_pb(settings[trial.name], trial_id=trial.name)
        curves = {m: trial.logged[m] for m in metrics if m in trial.logged}
        events = [(0, start), *scalars(curves), (0, session_end(status))]
        write_events(folder / "trials" / trial.name, events)
    for arm in results.arms.values():
        bands = {metric: band for metric in metrics if (band := arm.band(metric)) is not None}
        for line in ("mean", "low", "high"):
            curves = {
                m: np.stack([band.step_n, getattr(band, f"{line}_n")], axis=1) for m, band in bands.items()
            }
            if curves:
                write_events(folder / "arms" / arm.name / line, scalars(curves))


def varying(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Value]]:
    """Of each run's settings those in which any two runs differ, the run's name left out.

    A setting that a run lacks, or that is null or empty there, stays out of that run. A setting has one type
    in all runs: numbers are floats, and where not all are numbers, or all true or false, all are text.
    """
    keys = sorted({key for config in configs.values() for key in config} - {"name"})
    out: dict[str, dict[str, Value]] = {run: {} for run in configs}
    for key in keys:
        values = {run: config.get(key) for run, config in configs.items()}
        if len({json.dumps(value) for value in values.values()}) < 2 and key != "seed":
            continue
        present = {run: value for run, value in values.items() if value is not None and value != {}}
        for run, value in _of_one_type(present).items():
            out[run][key] = value
    return out


def experiment(settings: Mapping[str, Mapping[str, Value]], metrics: Sequence[str]) -> Summary:
    """What there is in any of the runs."""
    by_key: dict[str, set[Value]] = {}
    for run in settings.values():
        for key, value in run.items():
            by_key.setdefault(key, set()).add(value)
    infos = []
    for key, values in sorted(by_key.items()):
        info = api_pb2.HParamInfo(name=key, differs=len(values) > 1)  # TensorBoard shows these first
        summary_v2.Discrete(values).update_hparam_info(info)
        infos.append(info)
    found = api_pb2.Experiment(
        hparam_infos=infos, metric_infos=[summary_v2.Metric(metric).as_proto() for metric in metrics]
    )
    return described(metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=found))


def session_end(status: int) -> Summary:
    """That a run has ended, and how."""
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    return described(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end))


def described(tag: str, data: plugin_data_pb2.HParamsPluginData) -> Summary:
    """Data for the HParams page, which is kept in a summary's description."""
    about = metadata.create_summary_metadata(data)
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])


def scalars(curves: Mapping[str, np.ndarray]) -> list[tuple[int, Summary]]:
    """(n, 2) arrays of (step, value) as summaries with their steps."""
    return [
        (int(step), Summary(value=[Summary.Value(tag=metric, simple_value=value)]))
        for metric, points in curves.items()
        for step, value in points.tolist()
    ]


def write_events(folder: Path, summaries: Sequence[tuple[int, Summary]]) -> None:
    """Write summaries with their steps as one TensorBoard run."""
    with closing(EventFileWriter(str(folder))) as writer:
        for step, content in summaries:
            writer.add_event(Event(wall_time=time.time(), step=step, summary=content))


def _of_one_type(values: Mapping[str, Any]) -> dict[str, Value]:
    if all(isinstance(value, bool) for value in values.values()):
        return dict(values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values()):
        return {run: float(value) for run, value in values.items()}
    return {run: value if isinstance(value, str) else json.dumps(value) for run, value in values.items()}
