"""The model in bfloat16 through FSDP2 computes what the plain one computes. One worker, in this process."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gvcot import distributed, seeds
from gvcot.chain import Chain
from gvcot.data import scenes
from gvcot.model.compute import ComputeConfig
from gvcot.model.place import place
from gvcot.model.pretrained import Pretrained
from gvcot.model.sequence import Segment, pack
from gvcot.model.unified import UnifiedModel
from gvcot.sampler import condition_of, draw, ode_denoiser
from gvcot.types import ChainConfig

STEP = 2**-8
"""Of bfloat16, relative."""


def gap(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).square().mean() / expected.square().mean()).sqrt().item()


@pytest.fixture
def rough(policy: Pretrained) -> UnifiedModel:
    """The policy's model in bfloat16, sharded over one worker."""
    alone = not dist.is_initialized()
    model = copy.deepcopy(policy.model)
    mesh = distributed.init_process_group("cpu")
    place(model, device="cpu", compute=ComputeConfig(dtype="bfloat16"), mesh=mesh)
    yield model
    if alone:
        dist.destroy_process_group()


@torch.no_grad()
def test_a_cache_keeps_what_is_appended_to_it(policy: Pretrained, rough: UnifiedModel) -> None:
    chain = Chain(ChainConfig(), policy.tokenizer, has_vit=True)
    condition = condition_of(scenes.samples("val", range(1)), policy.model.config, policy.codec, chain)
    prefix, noisy = chain.prefix(condition, 0), seeds.noise_BND([1], (16, 64))
    cache = rough.new_cache(1)
    for segment in prefix:
        rough.prefill(cache, [segment])
    assert cache.next_position_B.item() > 0
    cached = rough.velocity(cache, noisy, torch.tensor([0.4]), condition.grid)[0]
    packed = pack([[*prefix, Segment.noise(noisy[0], 0.4, condition.grid)]], policy.model.config)
    assert gap(cached, rough(packed).velocity_MD) < 2 * STEP
    assert gap(cached, policy.model(packed).velocity_MD) < 0.02


def test_times_are_not_rounded(policy: Pretrained, rough: UnifiedModel) -> None:
    """Near 1 a step of bfloat16 is .004, as far as two steps of sampling at 512 pixels are apart."""
    seen: list[Tensor] = []
    rough.time_embedder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    noisy = seeds.noise_BND([1], (16, 64))[0]
    rough(pack([[Segment.noise(noisy, 0.9767, (4, 4))]], policy.model.config))
    assert seen[0].max().item() == pytest.approx(0.9767, abs=1e-6)


def test_images_are_drawn_from_the_same_conditions(policy: Pretrained, rough: UnifiedModel) -> None:
    chain = Chain(ChainConfig(), policy.tokenizer, has_vit=True)
    samples = scenes.samples("val", range(2))
    condition = condition_of(samples, policy.model.config, policy.codec, chain)
    exact, found = (
        draw(
            model,
            policy.codec,
            chain,
            condition,
            denoise=ode_denoiser(4, 2.0),
            noise=lambda name, shape: seeds.noise_BND([seeds.derive(i, name) for i in range(2)], shape[1:]),
        )
        for model in (policy.model, rough)
    )
    for name in ("x_cot", "x_edit"):
        assert gap(found.images[name], exact.images[name]) < 0.02
