"""What a policy worker draws from."""

from __future__ import annotations

from dataclasses import replace

import torch

from rewards.config import RewardConfig
from rl.config import RLConfig
from rl.worker import initial_seeds, rollout_seeds
from rollout.config import RolloutConfig
from rollout.sample import chain_noise

CONFIG = RLConfig(
    name="t",
    model="none",
    steps=1,
    prompts_per_step=4,
    group_size=3,
    rewards={"mask_iou": RewardConfig(type="mask_iou")},
)


def test_seeds_do_not_depend_on_how_prompts_are_dealt_to_workers() -> None:
    for draw in (rollout_seeds, initial_seeds):
        together = draw(CONFIG, 3, [0, 1, 2, 3])
        assert together == draw(CONFIG, 3, [0, 1]) + draw(CONFIG, 3, [2, 3])
        assert together != draw(CONFIG, 4, [0, 1, 2, 3])


def test_chains_start_from_their_own_noise_or_from_their_group_s() -> None:
    size = CONFIG.group_size
    grouped = replace(CONFIG, rollout=RolloutConfig(initial_noise="group"))
    own, shared = (
        chain_noise(initial_seeds(config, 0, [0, 1]))("x_cot", (2 * size, 4, 6)).unflatten(0, (2, size))
        for config in (CONFIG, grouped)
    )
    assert len({tuple(row.flatten().tolist()) for row in own.flatten(0, 1)}) == 2 * size
    assert shared.eq(shared[:, :1]).all()
    assert not torch.equal(shared[0, 0], shared[1, 0])
    assert len(set(rollout_seeds(grouped, 0, [0, 1]))) == 2 * size  # steps stay stochastic chain by chain
