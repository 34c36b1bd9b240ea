"""Which reward trains which phase."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gvcot.errors import ConfigError
from rewards.mix import geometric_mean, overall
from rl.credit import best_of_group, route, routing, totals, whiten_phases, without_upstream

PHASES = ("x_cot", "x_edit")
REACHES = ("x_cot", "x_edit", "x_edit")  # mask IoU, judge, fidelity
WEIGHTS = torch.tensor([1.0, 2.0, 0.5])


def scores(seed: int = 0) -> tuple[Tensor, Tensor]:
    advantage_BR = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    return advantage_BR, torch.ones(6, 3, dtype=torch.bool)


def test_causal_gives_a_phase_everything_downstream_of_it():
    advantage_BR, kept_BR = scores()
    advantage_BK, kept_BK = route(advantage_BR, kept_BR, WEIGHTS, REACHES, PHASES, "causal")
    torch.testing.assert_close(advantage_BK[:, 0], advantage_BR @ WEIGHTS)
    torch.testing.assert_close(advantage_BK[:, 1], advantage_BR[:, 1:] @ WEIGHTS[1:])
    assert kept_BK.all()


def test_factorised_and_broadcast():
    advantage_BR, kept_BR = scores()
    own, _ = route(advantage_BR, kept_BR, WEIGHTS, REACHES, PHASES, "factorised")
    torch.testing.assert_close(own[:, 0], advantage_BR[:, 0])
    torch.testing.assert_close(own[:, 1], advantage_BR[:, 1:] @ WEIGHTS[1:])
    every, _ = route(advantage_BR, kept_BR, WEIGHTS, REACHES, PHASES, "broadcast")
    torch.testing.assert_close(every, (advantage_BR @ WEIGHTS)[:, None].expand(6, 2))


def test_three_phases_in_order():
    table = routing(["thought", "x_edit", "x_cot"], ["thought", "x_cot", "x_edit"], "causal")
    assert table.tolist() == [[True, False, False], [True, True, True], [True, True, False]]


@pytest.mark.parametrize("mode", ["causal", "factorised"])
@pytest.mark.parametrize("whiten", [False, True])
def test_the_edit_phase_never_sees_the_reasoning_reward(mode: str, whiten: bool):
    advantage_BR, kept_BR = scores()
    louder_BR = advantage_BR * torch.tensor([1000.0, 1.0, 1.0])
    before, kept = route(advantage_BR, kept_BR, WEIGHTS, REACHES, PHASES, mode)
    after, _ = route(louder_BR, kept_BR, WEIGHTS, REACHES, PHASES, mode)
    if whiten:
        before, after = whiten_phases(before, kept), whiten_phases(after, kept)
    assert torch.equal(before[:, 1], after[:, 1])
    assert not torch.equal(before[:, 0], after[:, 0])


def test_upstream_baseline_takes_off_what_the_region_explains():
    """Hand-computed: the edit's reward is twice the region's and something that nothing upstream explains."""
    region_B, own_B = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, -1.0, -1.0, 1.0])
    advantage_BR = torch.stack([region_B, 2 * region_B + own_B], dim=1)
    kept_BR = torch.ones(4, 2, dtype=torch.bool)
    reaches, weights = ("x_cot", "x_edit"), torch.tensor([1.0, 3.0])
    plain, kept_BK = route(advantage_BR, kept_BR, weights, reaches, PHASES, "causal")
    based = without_upstream(plain, kept_BK, advantage_BR, kept_BR, reaches, PHASES)
    torch.testing.assert_close(based[:, 1], 3 * own_B)
    assert torch.equal(based[:, 0], plain[:, 0])  # nothing comes before the reasoning image
    assert kept_BK.all()


def test_upstream_baseline_survives_missing_and_constant_rewards():
    advantage_BR, kept_BR = scores()
    kept_BR[0, 0] = kept_BR[1, 1] = False
    advantage_BR[0, 0] = float("nan")
    advantage_BR[:, 2] = 0
    routed, kept_BK = route(advantage_BR, kept_BR, WEIGHTS, REACHES, PHASES, "causal")
    based = without_upstream(routed, kept_BK, advantage_BR, kept_BR, REACHES, PHASES)
    assert based.isfinite().all()
    assert kept_BK.all()
    none_BR, none_BK = torch.zeros_like(kept_BR), torch.zeros_like(kept_BK)
    nothing = without_upstream(routed * 0, none_BK, advantage_BR * 0, none_BR, REACHES, PHASES)
    assert nothing[:, 1].eq(0).all()


def test_kept_follows_the_routed_rewards():
    advantage_BR, _ = scores()
    kept_BR = torch.tensor([[True, False, False]] * 3 + [[False, True, True]] * 3)
    advantage_BK, kept_BK = route(advantage_BR, kept_BR, WEIGHTS, REACHES, PHASES, "causal")
    assert kept_BK.tolist() == [[True, False]] * 3 + [[True, True]] * 3
    assert advantage_BK[:3, 1].eq(0).all()


def test_a_phase_that_no_reward_reaches_is_not_trained():
    advantage_BR, kept_BR = scores()
    _, kept_BK = route(advantage_BR[:, 1:], kept_BR[:, 1:], WEIGHTS[1:], REACHES[1:], PHASES, "factorised")
    assert kept_BK.tolist() == [[False, True]] * 6


def test_a_reward_of_a_phase_that_the_chain_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"'x_cot', which this chain doesn't have .*known: x_edit"):
        routing(["x_cot"], ["x_edit"], "causal")


def test_rejection_keeps_the_best_chain_of_each_group_with_a_signal() -> None:
    advantage_BK = torch.tensor([[0.5, 9.0], [1.5, -1.0], [-2.0, 3.0], [0.0, 0.0], [0.0, 0.0], [0.7, 0.0]])
    kept_BK = torch.tensor([[True, True]] * 3 + [[False, False]] * 2 + [[True, True]])
    group_B = torch.tensor([0, 0, 0, 1, 1, 2])
    best_BK = best_of_group(advantage_BK, kept_BK, group_B)
    assert best_BK[:, 0].tolist() == [False, True, False, False, False, True]
    assert torch.equal(best_BK[:, 0], best_BK[:, 1])
    # a missing score is never the best, even where all others are bad
    kept_BK[1] = False
    assert best_of_group(advantage_BK, kept_BK, group_B)[:, 0].tolist() == [True] + [False] * 4 + [True]


RAW_BR = torch.tensor([[0.4, 0.1], [0.4, 0.9], [0.8, 0.4], [0.2, 0.2]])
TWO = torch.tensor([1.0, 3.0])
TWO_ROUTES = routing(["x_cot", "x_edit"], PHASES, "causal")


def test_totals_by_hand():
    """Reasoning: (1 r_0 + 3 r_1) / 4; the edit sees the second score alone."""
    total_BK, valid_BK = totals(RAW_BR, RAW_BR > 0, torch.zeros(4).long(), TWO, TWO_ROUTES, overall)
    torch.testing.assert_close(total_BK[:, 0], torch.tensor([0.175, 0.775, 0.5, 0.2]))
    torch.testing.assert_close(total_BK[:, 1], RAW_BR[:, 1])
    assert valid_BK.all()


def test_geometric_totals_by_hand():
    """Equal weights: sqrt(r_0 r_1)."""
    total_BK, _ = totals(RAW_BR, RAW_BR > 0, torch.zeros(4).long(), torch.ones(2), TWO_ROUTES, geometric_mean)
    torch.testing.assert_close(total_BK[:, 0], torch.tensor([0.2, 0.6, 0.32**0.5, 0.2]))


def test_a_chain_that_lacks_a_score_its_group_has_is_not_compared_by_what_is_left():
    valid_BR = torch.tensor([[True, False], [True, True], [True, False], [True, False]])
    group_B = torch.tensor([0, 0, 1, 1])  # nobody of group 1 has the second score
    total_BK, valid_BK = totals(RAW_BR, valid_BR, group_B, TWO, TWO_ROUTES, overall)
    assert valid_BK.tolist() == [[False, False], [True, True], [True, False], [True, False]]
    torch.testing.assert_close(total_BK[2:, 0], RAW_BR[2:, 0])
    assert total_BK.isfinite().all()
