"""Scoring on a GPU; nothing to see without one."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from gvcot import seeds
from gvcot.data import scenes
from gvcot.data.source import SAMPLE_FIELDS
from gvcot.model.pretrained import Pretrained
from rewards.canaries import canaries
from rewards.config import RewardConfig
from rewards.mix import score_all
from rewards.registry import PHASES, REWARDS, build_rewards
from rl.scoring import reward_batch, watch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")


def test_rewards_score_alike_on_both_devices(policy: Pretrained) -> None:
    samples, prompt_B = scenes.samples("val", range(3)), torch.tensor([0, 0, 1, 1, 2, 2])
    images = {name: seeds.noise_BND([seeds.derive(name)], (6 * 3, 64 * 64))[0] for name in sorted(PHASES)}
    images = {name: image.view(6, 3, 64, 64).clamp(-1, 1) for name, image in images.items()}
    left_out = {"vlm_judge", "lpips"} | (
        set() if find_spec("open_clip") else {"clip_image", "clip_direction"}
    )
    names = [name for name in REWARDS if name not in left_out]
    rewards = build_rewards({n: RewardConfig(type=n) for n in names}, PHASES | set(SAMPLE_FIELDS))
    found = {}
    for device in ("cpu", "cuda"):
        batch = reward_batch(policy.codec.to(device), samples, prompt_B, images, device=device)
        assert batch.source_rt_B3HW.device.type == device
        scores = {name: r.raw_B.cpu() for name, r in score_all(rewards, batch).items()}
        seen = {name: value_B.cpu() for name, value_B in canaries(batch).items()}
        found[device] = scores | seen | {k: torch.tensor(v) for k, v in watch(rewards, batch).items()}
    for name, value in found["cpu"].items():
        torch.testing.assert_close(found["cuda"][name], value, atol=1e-3, rtol=1e-3, equal_nan=True, msg=name)
    policy.codec.to("cpu")
