"""The share of a policy gradient that is signal."""

from __future__ import annotations

import pytest
import torch

from experiments.signal import groups_of, share, signal_shares
from gvcot.config import load
from gvcot.errors import ConfigError
from gvcot.model.pretrained import find_model, load_pretrained
from rl.config import RLConfig

SMALL = [
    "prompts_per_step=2",
    "group_size=2",
    "rollout.num_steps=2",
    "nft.num_times=1",
    "optim.micro_batch=4",
]


def test_gradients_that_agree_are_all_signal() -> None:
    assert share(torch.ones(3, 5)).signal == pytest.approx(1.0)


def test_independent_gradients_have_none() -> None:
    noise = torch.randn(6, 20_000, generator=torch.Generator().manual_seed(0))
    found = share(noise)
    assert abs(found.signal) < 4 * found.error
    assert found.error < 0.01


def test_the_share_is_that_of_the_squared_gradient() -> None:
    noise = torch.randn(64, 10_000, generator=torch.Generator().manual_seed(1))
    assert share(0.5 + noise).signal == pytest.approx(0.25 / 1.25, abs=0.01)


def test_large_parameters_do_not_decide_alone() -> None:
    gradients = torch.randn(64, 10_000, generator=torch.Generator().manual_seed(2))
    gradients[:, :100] = 1000.0
    assert share(gradients).signal < 0.05


def test_parameters_are_grouped_by_layer_and_kind() -> None:
    names = [
        "language_model.model.layers.0.mlp.up_proj.weight",
        "language_model.model.layers.1.mlp.up_proj.weight",
        "language_model.model.norm.weight",
        "vit_model.vision_model.embeddings.patch_embedding.bias",
    ]
    assert groups_of(names) == {
        "all": names,
        "layer 0": names[:1],
        "layer 1": names[1:2],
        "layers: mlp.up_proj.weight": names[:2],
        "norm": names[2:3],
        "vit_model": names[3:],
    }


def test_shares_of_the_shipped_start_leave_it_as_it_was() -> None:
    config = load(RLConfig, "rl/tiny", SMALL)
    policy = load_pretrained(find_model(config.model))
    before = {name: p.clone() for name, p in policy.model.state_dict().items()}
    shares = signal_shares(config, policy, 2)
    assert {"all", "layer 0", "layer 3", "layers: self_attn.q_proj.weight", "llm2vae"} <= set(shares)
    assert shares["all"].parameters > 1_000_000
    assert -1 <= shares["all"].signal <= 1
    assert all(torch.equal(before[name], p) for name, p in policy.model.state_dict().items())
    with pytest.raises(ConfigError, match="at least 2 batches"):
        signal_shares(config, policy, 1)
