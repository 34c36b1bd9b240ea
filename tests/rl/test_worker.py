"""What a policy worker draws from."""

from __future__ import annotations

import torch

from rewards.config import RewardConfig
from rl.config import RLConfig
from rl.worker import rollout_seeds
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
    together, groups = rollout_seeds(CONFIG, 3, [0, 1, 2, 3])
    first, second = rollout_seeds(CONFIG, 3, [0, 1]), rollout_seeds(CONFIG, 3, [2, 3])
    assert together == first[0] + second[0]
    assert groups == first[1] + second[1]
    assert together != rollout_seeds(CONFIG, 4, [0, 1, 2, 3])[0]


def test_group_seeds_start_a_group_from_one_noise_and_chains_from_their_own() -> None:
    chains, groups = rollout_seeds(CONFIG, 0, [0, 1])
    size = CONFIG.group_size
    own = chain_noise(chains)("x_cot", (2 * size, 4, 6)).unflatten(0, (2, size))
    shared = chain_noise(groups)("x_cot", (2 * size, 4, 6)).unflatten(0, (2, size))
    assert shared.eq(shared[:, :1]).all()
    assert not torch.equal(shared[0, 0], shared[1, 0])
    assert len({tuple(row.flatten().tolist()) for row in own.flatten(0, 1)}) == 2 * size
