"""Alarms on logged curves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvcot.errors import ConfigError
from rewards.config import RewardConfig
from rl.alarms import Alarms, rings_of
from rl.config import AlarmConfig, RLConfig, default_alarms


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
