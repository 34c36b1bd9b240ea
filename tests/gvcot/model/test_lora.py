"""Adapters: nothing changes at first, little is trained, and a plain model comes out."""

from __future__ import annotations

import pytest
import torch

from gvcot.errors import ConfigError
from gvcot.model.compute import LoRAConfig
from gvcot.model.lora import add_lora, merged, reset_lora, without_lora
from gvcot.model.parts import freeze_but
from gvcot.model.sequence import Segment, pack
from gvcot.model.unified import UnifiedModel


@pytest.fixture
def packed(tiny_config):
    draw = torch.Generator().manual_seed(1)
    x_ND = torch.randn(4, tiny_config.latent_dim, generator=draw)
    words = Segment.text(torch.tensor([7, 8, 9]))
    return pack([[words, Segment.vae(x_ND, (2, 2)), Segment.noise(x_ND, 0.5, (2, 2))]], tiny_config)


def adapt(model: UnifiedModel, lora: LoRAConfig, seed: int = 0) -> dict[str, torch.nn.Parameter]:
    add_lora(model, lora)
    reset_lora(model, seed)
    return freeze_but(model, "all", lora)


def shake(parameters: dict[str, torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))


def test_an_adapter_changes_nothing_until_it_is_trained(tiny_model, packed):
    before = tiny_model(packed).velocity_MD
    trained = adapt(tiny_model, LoRAConfig(rank=3))
    assert torch.equal(tiny_model(packed).velocity_MD, before)
    shake(trained)
    assert not torch.allclose(tiny_model(packed).velocity_MD, before)
    with without_lora(tiny_model):
        assert torch.equal(tiny_model(packed).velocity_MD, before)
    assert not torch.allclose(tiny_model(packed).velocity_MD, before)


def test_adapters_of_the_generation_expert_by_hand(tiny_model, tiny_config):
    rank, llm = 3, tiny_config.llm
    trained = adapt(tiny_model, LoRAConfig(rank=rank))
    assert all("_moe_gen" in name for name in trained)
    kv = llm.kv_heads * llm.head_dim
    sides = [(llm.hidden, llm.hidden)] * 2 + [(llm.hidden, kv)] * 2 + [(llm.hidden, llm.mlp)] * 3
    assert sum(p.numel() for p in trained.values()) == llm.layers * sum(rank * (a + b) for a, b in sides)


def test_both_experts_and_projections_beside(tiny_model):
    trained = adapt(tiny_model, LoRAConfig(rank=2, experts="both", also=("llm2vae", "time_embedder")))
    assert any("q_proj.lora_A" in name for name in trained)
    assert {name for name in trained if ".lora_" not in name} == {
        "llm2vae.weight",
        "llm2vae.bias",
        "time_embedder.mlp.0.weight",
        "time_embedder.mlp.0.bias",
        "time_embedder.mlp.2.weight",
        "time_embedder.mlp.2.bias",
    }


def test_gradients_reach_the_adapters_alone(tiny_model, packed):
    trained = adapt(tiny_model, LoRAConfig(rank=2))
    shake(trained)
    tiny_model(packed).velocity_MD.square().sum().backward()
    with_gradient = {name for name, p in tiny_model.named_parameters() if p.grad is not None}
    assert with_gradient == set(trained)


def test_the_plain_model_computes_the_same(tiny_model, tiny_config, packed):
    names = set(tiny_model.state_dict())
    trained = adapt(tiny_model, LoRAConfig(rank=3, alpha=5.0, experts="both", also=("vae2llm",)))
    shake(trained)
    plain = UnifiedModel(tiny_config)
    weights = merged(tiny_model, tiny_model.state_dict())
    assert set(weights) == names
    plain.load_state_dict(weights)
    torch.testing.assert_close(
        plain(packed).velocity_MD, tiny_model(packed).velocity_MD, rtol=1e-4, atol=1e-5
    )


def test_adapters_are_a_function_of_the_seed(tiny_config):
    models = [UnifiedModel(tiny_config) for _ in range(3)]
    one, two, other = (
        torch.cat([p.detach().flatten() for p in adapt(m, LoRAConfig(rank=2), seed).values()])
        for m, seed in zip(models, (1, 1, 2), strict=True)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_impossible_adapters_are_refused():
    with pytest.raises(ConfigError, match="rank of at least 1"):
        LoRAConfig(rank=0)
