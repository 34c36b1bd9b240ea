"""From raw results to one table: order, missing scores, weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gvcot.errors import RewardError
from gvcot.types import RewardResult
from rewards import mix
from rewards.config import RewardConfig

NAN, INF = float("nan"), float("inf")


def result(values, valid=None, **parts):
    valid = [True] * len(values) if valid is None else valid
    return RewardResult(
        raw_B=torch.tensor(values),
        valid_B=torch.tensor(valid),
        parts={name: torch.tensor(part) for name, part in parts.items()},
    )


def configs(**weights):
    return {name: RewardConfig(type=name, weight=weight) for name, weight in weights.items()}


def test_columns_follow_the_recipe_not_the_results():
    scores = mix.combine({"b": result([3.0, 4.0]), "a": result([1.0, 2.0])}, configs(a=1, b=1))
    assert scores.names == ("a", "b")
    assert scores.raw_BR.tolist() == [[1, 3], [2, 4]]
    assert scores.valid_BR.all()


def test_missing_and_non_finite_scores_are_masked_and_counted():
    results = {"a": result([0.5, NAN, INF, NAN], [True, True, True, False])}
    raw, valid, _ = mix.combine(results, configs(a=1))
    assert valid[:, 0].tolist() == [True, False, False, False]
    assert raw[:, 0].tolist() == [0.5, 0, 0, 0]
    assert mix.count_nonfinite(results) == {"a": 2}


def test_overall_by_hand():
    """Weights 1 and 3; the second chain misses the second component, the third misses both."""
    raw = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    overall = mix.overall(raw, valid, mix.weights(configs(a=1, b=3)))
    assert overall[:2].tolist() == [0.25, 1.0]
    assert overall[2].isnan()


@given(
    weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=4),
    scale=st.floats(0.1, 10),
    seed=st.integers(0, 10_000),
)
def test_overall_stays_between_the_components_and_ignores_the_scale_of_weights(weights, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(5, len(weights), generator=generator)
    valid = torch.rand(5, len(weights), generator=generator) < 0.7
    valid[:, 0] = True
    overall = mix.overall(raw, valid, torch.tensor(weights))
    low = torch.where(valid, raw, INF).amin(dim=1)
    high = torch.where(valid, raw, -INF).amax(dim=1)
    assert ((overall >= low - 1e-5) & (overall <= high + 1e-5)).all()
    assert overall.tolist() == pytest.approx(
        mix.overall(raw, valid, scale * torch.tensor(weights)).tolist(), abs=1e-5
    )


def test_a_weight_of_zero_is_scored_but_does_not_count():
    raw, valid, names = mix.combine({"a": result([1.0]), "b": result([0.0])}, configs(a=1, b=0))
    assert names == ("a", "b")
    assert mix.overall(raw, valid, mix.weights(configs(a=1, b=0))).item() == 1


def test_too_many_missing_scores_stop_the_run():
    valid = torch.tensor([[True, False], [True, True], [True, False], [True, True]])
    assert mix.missing_share(valid).tolist() == [0, 0.5]
    mix.check_missing(valid, ("iou", "judge"), 0.5)
    with pytest.raises(RewardError, match=r"reward judge: 50% of 4 scores are missing, at most 40%.*judge"):
        mix.check_missing(valid, ("iou", "judge"), 0.4)


def test_other_components_than_the_recipes_are_refused():
    with pytest.raises(RewardError, match=r"names \['a', 'b'\] but results came for \['a'\]"):
        mix.combine({"a": result([1.0])}, configs(a=1, b=1))
    with pytest.raises(RewardError, match="at least one"):
        mix.combine({}, {})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (result([1.0, 2.0]), r"raw_B is \(2,\), expected a tensor \(3,\)"),
        (result([1.0] * 3, [True] * 2), r"valid_B is \(2,\)"),
        (result([1.0] * 3, part=[1.0]), r"part is \(1,\)"),
        (RewardResult(raw_B=torch.ones(3, 1), valid_B=torch.ones(3).bool()), r"raw_B is \(3, 1\)"),
        (RewardResult(raw_B=torch.ones(3), valid_B=torch.ones(3)), "expected floats and bool"),
        (RewardResult(raw_B=torch.ones(3).int(), valid_B=torch.ones(3).bool()), "expected floats and bool"),
        ([1.0, 2.0, 3.0], "returned list, expected RewardResult"),
        (RewardResult(raw_B=[1.0] * 3, valid_B=torch.ones(3).bool()), "raw_B is list"),
    ],
)
def test_results_of_the_wrong_form_are_refused(wrong, message):
    with pytest.raises(RewardError, match=message):
        mix.check_result("mine", wrong, 3)
