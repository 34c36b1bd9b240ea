"""Alarms on logged curves."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvcot.config import load
from gvcot.errors import ConfigError
from rewards.config import RewardConfig
from rl.alarms import Alarms, rings_of
from rl.config import AlarmConfig, RLConfig, default_alarms

MEASURED = Path(__file__).parents[2] / "docs" / "measured"


def lines(values, metric="canary/x"):
    return [{"step": step, metric: value} for step, value in enumerate(values, start=1)]


def alarm(**fields):
    return {"a": AlarmConfig(**({"metric": "canary/x", "span": 1, "patience": 1} | fields))}


def steps(config, values):
    return [ring.step for ring in rings_of(config, lines(values))]


def test_it_rings_when_the_limit_is_passed_and_again_only_after_it_was_back():
    assert steps(alarm(above=1.0), [0, 1, 2, 3, 0, 2]) == [3, 6]
    assert steps(alarm(below=1.0), [1, 1, 0.5]) == [3]
    assert steps(alarm(above=1.0, below=-1.0), [0, 2, 0, -2]) == [2, 4]


def test_patience_asks_for_steps_in_a_row():
    assert steps(alarm(above=1.0, patience=3), [2, 2, 0, 2, 2, 2]) == [6]


def test_changes_from_the_start_and_from_the_best_are_shares():
    values = [2.0, 3.0, 2.5, 2.1, 1.8]
    assert steps(alarm(below=-0.09, relative_to="start"), values) == [5]  # 2.0 -> 1.8: 10 % less
    assert steps(alarm(below=-0.25, relative_to="best"), values) == [4]  # 3.0 -> 2.1: 30 % less
    (ring,) = rings_of(alarm(below=-0.25, relative_to="best"), lines(values))
    assert str(ring) == "step 4: a: canary/x is -30.0% from its best (limit -25%)"


def test_absolute_changes_are_differences():
    config = alarm(above=0.05, relative_to="start", absolute=True)
    assert steps(config, [0.001, 0.04, 0.06]) == [3]
    assert steps(alarm(above=0.05, relative_to="start"), [0.001, 0.002]) == [2]  # as a share: +100 %
    (ring,) = rings_of(config, lines([0.001, 0.061]))
    assert str(ring) == "step 2: a: canary/x is +0.06 from where it began (limit +0.05)"


def test_values_that_are_no_numbers_are_passed_over():
    """A live step without a single score logs NaN, which the log keeps as null: both find the same."""
    values = [0.0, 0.0, math.nan, 5.0, math.inf, 5.0]
    nulls = [value if math.isfinite(value) else None for value in values]
    config = alarm(above=1.0, span=2, patience=1)
    assert steps(config, values) == steps(config, nulls) == [4]


def recipe_alarms(name):
    config = load(RLConfig, f"rl/{name}", [])
    return {key: value for key, value in config.active_alarms().items() if value.metric.startswith("eval/")}


def test_over_optimisation_is_told_before_the_truth_has_lost_5_percent():
    """Judge and truth rise together, then the judge alone; evaluations of the same scenes, noise .5 %."""
    rng, config = np.random.default_rng(0), recipe_alarms("tiny-learned-judge")
    assert set(config) == {"truth_falls", "judge_outruns_truth"}
    for _ in range(20):
        judge = 0.40 + 0.10 * np.linspace(0, 1, 17)
        truth = 0.42 + 0.04 * np.minimum(np.linspace(0, 2, 17), 1) - 0.04 * np.linspace(-1, 1, 17).clip(0)
        judge, truth = (curve * (1 + rng.normal(0, 0.005, 17)) for curve in (judge, truth))
        lost = next(i for i, v in enumerate(truth) if v < 0.95 * truth[: i + 1].max())
        run = [
            {"step": 25 * i, "eval/judge": j, "eval/exact_judge": t}
            for i, (j, t) in enumerate(zip(judge, truth, strict=True))
        ]
        rings = rings_of(config, run)
        assert rings
        assert rings[0].step < 25 * lost


def test_alarms_on_evaluations_are_silent_for_a_policy_that_stays_as_it_is():
    """At the warm start's levels, with three times the noise of ten updates (docs/results.md)."""
    rng = np.random.default_rng(0)
    for name, level in (("tiny-judge", 0.3), ("tiny-learned-judge", 0.55)):
        metrics = {m for alarm in recipe_alarms(name).values() for m in (alarm.metric, alarm.minus) if m}
        for _ in range(20):
            run = [
                {"step": i, **{m: level + rng.normal(0, 0.002) for m in sorted(metrics)}} for i in range(17)
            ]
            assert rings_of(recipe_alarms(name), run) == []


def test_smoothing_by_hand():
    """Span 2: weights 1, 1/2, 1/4 from the newest back; silent before the second step."""
    # smoothed: -, (4 + 0 / 2) / 1.5 = 2.67, (0 + 4 / 2 + 0) / 1.75 = 1.14
    assert steps(alarm(above=1.1, span=2, patience=2), [0, 4, 0]) == [3]
    assert steps(alarm(above=1.2, span=2, patience=2), [0, 4, 0]) == []
    assert steps(alarm(above=1.0, span=2), [9]) == []


def test_a_difference_of_two_curves():
    config = {"copying": AlarmConfig(metric="c", minus="r", above=0.0, span=1, patience=1)}
    run = [{"step": 1, "c": 0.2, "r": 0.5}, {"step": 2, "c": 0.6}, {"step": 3, "c": 0.6, "r": 0.5}]
    assert [ring.step for ring in rings_of(config, run)] == [3]


def test_lines_without_the_metric_are_passed_over():
    run = [{"step": 1, "canary/x": 2.0}, {"step": 1, "eval/x": 0.0}, {"step": 2, "canary/x": None}]
    assert len(rings_of(alarm(above=1.0), run)) == 1
    watch = Alarms(alarm(above=1.0))
    assert watch.ringing() == {}
    watch.update(1, {"canary/x": 2.0})
    assert watch.ringing() == {"alarm/a": 1.0}


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.integers(0, 60))
def test_a_resumed_run_rings_as_the_run_itself(values, cut):
    config = alarm(above=0.5, below=-0.5, span=4, patience=2)
    whole = rings_of(config, lines(values))
    watch = Alarms(config)
    for line in lines(values)[:cut]:
        watch.update(line["step"], line)
    rest = [ring for line in lines(values)[cut:] for ring in watch.update(line["step"], line)]
    assert [r for r in whole if r.step > cut] == rest


def rl_config(**changes):
    plain = {"name": "t", "model": "", "steps": 1, "prompts_per_step": 2, "group_size": 2}
    return RLConfig(**plain, rewards={"r": RewardConfig(type="mask_iou")}, **changes)


def test_recipes_add_replace_and_silence_alarms():
    own = AlarmConfig(metric="reward/r", relative_to="best", below=-0.05)
    config = rl_config(alarms={"mine": own, "whitens": None}, stop_on=("mine", "overlay_leaks"))
    assert set(config.active_alarms()) == set(default_alarms()) - {"whitens"} | {"mine"}
    with pytest.raises(ConfigError, match=r"stop_on: no alarm 'overlay_leak'; did you mean 'overlay_leaks'"):
        rl_config(stop_on=("overlay_leak",))
    with pytest.raises(ConfigError, match="has no limit"):
        AlarmConfig(metric="x")
    with pytest.raises(ConfigError, match="at least 1"):
        AlarmConfig(metric="x", above=1.0, span=0)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_over_optimisation_is_told_before_a_twentieth_of_the_truth_is_lost(seed: str) -> None:
    """Of the runs of `tiny-learned-judge` in docs/results.md, by the recipe's alarms. (Seed 0 was evaluated
    too seldom to say.)"""
    runs = json.loads(gzip.decompress((MEASURED / "over-optimisation.json.gz").read_bytes()))
    alarms = load(RLConfig, "rl/tiny-learned-judge").active_alarms()
    first = min(ring.step for ring in rings_of(alarms, runs[seed]))
    truth = {line["step"]: line["eval/exact_judge"] for line in runs[seed] if "eval/exact_judge" in line}
    best = max(value for step, value in truth.items() if step <= first)
    at_ring = min(value for step, value in truth.items() if step <= first)
    assert at_ring > 0.95 * best
    assert min(truth.values()) < 0.95 * best  # and it would have been lost
