"""Group-relative advantages: published values, invariances, missing scores.

Legend: B chains, R reward components.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gvcot.errors import RewardError
from rl.advantage import combine, group_advantage, whitened

NAN = math.nan


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def present(reward_BR: Tensor) -> Tensor:
    return torch.ones_like(reward_BR, dtype=torch.bool)


def advantage(reward_BR: Tensor, group: list[int], std: str = "group", **kwargs: float):
    kwargs = {"std_floor": 1e-6} | kwargs
    return group_advantage(reward_BR, present(reward_BR), torch.tensor(group), std=std, **kwargs)


def test_one_two_three_four_gives_the_published_values():
    result = advantage(column(1, 2, 3, 4), [0] * 4)
    expected = column(-1.1619, -0.3873, 0.3873, 1.1619)
    torch.testing.assert_close(result.advantage_BR, expected, atol=1e-4, rtol=0)
    assert result.kept_BR.all()


def test_agrees_with_verl_where_definitions_coincide():
    import numpy as np

    from gvcot.torchvision_cpu import declare_missing_operators

    declare_missing_operators()
    from verl.trainer.ppo.core_algos import compute_grpo_vectorized_outcome_advantage

    reward_BR = torch.randn(12, 1, generator=torch.Generator().manual_seed(0))
    group = [0, 1, 2] * 4
    theirs, _ = compute_grpo_vectorized_outcome_advantage(reward_BR, torch.ones(12, 1), np.array(group))
    torch.testing.assert_close(advantage(reward_BR, group).advantage_BR, theirs, atol=1e-5, rtol=0)


def test_kinds_of_standard_deviation():
    reward_BR = column(0, 2, 10, 16)
    centred = column(-1, 1, -3, 3)
    groups = [0, 0, 1, 1]
    torch.testing.assert_close(advantage(reward_BR, groups, "none").advantage_BR, centred)
    torch.testing.assert_close(
        advantage(reward_BR, groups, "group").advantage_BR, column(-1, 1, -1, 1) / math.sqrt(2)
    )
    torch.testing.assert_close(
        advantage(reward_BR, groups, "batch").advantage_BR, centred / reward_BR.std(unbiased=True)
    )


def test_floor_keeps_noise_small_and_clamp_bounds_outliers():
    tiny = advantage(column(0.5, 0.5001), [0, 0], std_floor=0.1).advantage_BR
    torch.testing.assert_close(tiny, column(-0.0005, 0.0005), atol=1e-6, rtol=0)
    outlier = advantage(column(*([0.0] * 99), 1.0), [0] * 100, clamp=5.0).advantage_BR
    assert outlier.max().item() == 5.0


def test_groups_without_a_signal_get_exactly_zero_and_are_not_kept():
    result = advantage(column(0.7, 0.7, 0.7, 3.0, 1.0, 2.0), [0, 0, 0, 1, 2, 2])
    assert result.advantage_BR[:4].eq(0).all()  # a constant group, then a group of one
    assert result.kept_BR.squeeze(1).tolist() == [False] * 4 + [True] * 2
    assert result.zero_std_fraction_R.tolist() == pytest.approx([2 / 3])


def test_a_missing_score_is_not_a_zero():
    reward_BR = column(1.0, NAN, 3.0)
    valid_BR = torch.tensor([[True], [False], [True]])
    result = group_advantage(
        reward_BR, valid_BR, torch.zeros(3, dtype=torch.long), std="none", std_floor=0.01
    )
    assert result.advantage_BR.tolist() == [[-1.0], [0.0], [1.0]]
    assert result.kept_BR.tolist() == [[True], [False], [True]]


def test_a_score_marked_valid_must_be_finite():
    with pytest.raises(RewardError, match="missing"):
        advantage(column(1.0, NAN), [0, 0])


@given(
    rewards=st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6),
    shift=st.floats(-100, 100, width=32),
    order=st.permutations(range(6)),
    std=st.sampled_from(["group", "batch", "none"]),
)
def test_shifting_rewards_or_reordering_chains_changes_nothing(rewards, shift, order, std):
    reward_BR, group = column(*rewards).double(), torch.tensor([0, 0, 0, 1, 1, 1])
    kwargs = {"std": std, "std_floor": 0.05, "clamp": 1e9}  # clamping alone moves a group's mean
    valid_BR = present(reward_BR)
    base = group_advantage(reward_BR, valid_BR, group, **kwargs)
    moved = group_advantage(reward_BR + shift, valid_BR, group, zero_tol=1e-6, **kwargs)
    permuted = group_advantage(reward_BR[list(order)], valid_BR, group[list(order)] + 7, **kwargs)
    torch.testing.assert_close(permuted.advantage_BR, base.advantage_BR[list(order)])
    torch.testing.assert_close(moved.advantage_BR, base.advantage_BR, atol=1e-5, rtol=0)
    for g in range(2):
        assert base.advantage_BR[group == g].mean().item() == pytest.approx(0, abs=1e-6)


def test_components_are_normalised_before_they_are_summed():
    # binary rewards: totals {0, 1} and {0, 2}; one norm over the total can't tell them apart, the sum can
    reward_BR = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    group = [0, 0, 1, 1]
    total = advantage(reward_BR.sum(1, keepdim=True), group).advantage_BR.squeeze(1)
    torch.testing.assert_close(total.abs(), torch.full((4,), 0.7071), atol=1e-4, rtol=0)
    parts = advantage(reward_BR, group)
    combined, kept = combine(parts.advantage_BR, parts.kept_BR, torch.ones(2))
    torch.testing.assert_close(combined, torch.tensor([-0.7071, 0.7071, -1.4142, 1.4142]), atol=1e-4, rtol=0)
    assert kept.all()


def test_whitening_gives_unit_spread_over_the_kept_chains():
    advantage_BR = torch.tensor([[3.0], [-1.0], [4.0], [99.0]])
    kept_BR = torch.tensor([[True], [True], [True], [False]])
    total, kept = combine(advantage_BR, kept_BR, torch.ones(1))
    white = whitened(total, kept)
    assert kept.tolist() == [True, True, True, False]
    assert white[3] == 0
    assert white[:3].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[:3].std().item() == pytest.approx(1, abs=1e-6)


def test_a_component_of_weight_zero_neither_counts_nor_keeps():
    advantage_BR = torch.tensor([[1.0, 5.0], [-1.0, -5.0]])
    kept_BR = torch.tensor([[True, True], [False, True]])
    combined, kept = combine(advantage_BR, kept_BR, torch.tensor([2.0, 0.0]))
    assert combined.tolist() == [2.0, 0.0]
    assert kept.tolist() == [True, False]
