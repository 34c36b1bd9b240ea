from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.learned_judge.agreement import agreement, compare, means_by_kind


def test_agreement_of_four_edits_by_hand() -> None:
    found = agreement(np.array([1.0, 6.0, 5.0, 9.0]), np.array([0.0, 2.0, 7.0, 10.0]))
    assert found["num"] == 4
    assert found["mae"] == pytest.approx((1 + 4 + 2 + 1) / 4)
    assert found["spearman"] == pytest.approx(0.8)  # ranks 1 3 2 4 against 1 2 3 4
    assert found["auc"] == pytest.approx(3 / 4)  # of 5 and 9 against 1 and 6, one pair is wrong


def test_a_judge_that_says_the_same_of_all_has_no_correlation_and_tells_nothing_apart() -> None:
    found = agreement(np.full(4, 5.0), np.array([0.0, 2.0, 7.0, 10.0]))
    assert math.isnan(found["spearman"])
    assert found["auc"] == 0.5
    assert math.isnan(agreement(np.arange(4.0), np.full(4, 9.0))["auc"])


def test_overall_is_the_reward_and_what_was_not_answered_is_left_out() -> None:
    judged_N2 = np.array([[4.0, 9.0], [np.nan, 5.0], [9.0, 1.0]])
    true_N2 = np.array([[4.0, 9.0], [9.0, 9.0], [1.0, 1.0]])
    found = compare(judged_N2, true_N2, np.array(["target", "target", "drawn"]))
    assert found["overall"]["num"] == 2
    assert found["overall"]["mae"] == pytest.approx((0 + 2) / 2)  # 6 and 6; 3 and 1
    assert found["drawn/sc"] == pytest.approx(
        {"num": 1, "mae": 8.0, "spearman": math.nan, "pearson": math.nan, "auc": math.nan}, nan_ok=True
    )


def test_means_by_kind() -> None:
    judged_N2, true_N2 = np.array([[4.0, 9.0], [6.0, 5.0]]), np.array([[1.0, 9.0], [2.0, 9.0]])
    assert means_by_kind(judged_N2, true_N2, np.array(["paint", "paint"])) == {
        "paint": {"sc": 1.5, "pq": 9.0, "judged_sc": 5.0, "judged_pq": 7.0}
    }
