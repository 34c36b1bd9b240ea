"""The routes of `test_unified.py` at the widths of BAGEL-7B-MoT, with two layers a stack and few words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gvcot.model.compute import Attention, ComputeConfig
from gvcot.model.config import TokenIds, UnifiedConfig
from gvcot.model.sequence import Segment, pack
from gvcot.model.unified import UnifiedModel

pytestmark = pytest.mark.slow

GRID, NUM_WORDS = (4, 6), 500
BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of the root mean square of a difference, relative to the velocity's. A step of bfloat16 is 2^-8, .4 %."""


@pytest.fixture
def wide_model(folder_7b: Path) -> UnifiedModel:
    """Random weights: .95 billion parameters, 3.8 GB in float32."""
    config = UnifiedConfig.from_bagel_dir(folder_7b)
    assert config.vit is not None
    config = replace(
        config,
        llm=replace(config.llm, layers=2, vocab=NUM_WORDS + 4),
        vit=replace(config.vit, layers=2),
        token_ids=TokenIds(bos=500, eos=501, boi=502, eoi=503),
    )
    model = UnifiedModel(config)
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    model.llm2vae.weight.data.normal_(0, 3584**-0.5, generator=generator)
    return model.requires_grad_(False)


def chain_of(num_words: int, seed: int, *, drop_text: bool = False) -> list[Segment]:
    """The gvcot chain on images of 4 x 6 latent tokens and 5 x 3 ViT patches."""
    generator = torch.Generator().manual_seed(seed)

    def latents() -> Tensor:
        return torch.randn(GRID[0] * GRID[1], 64, generator=generator)

    def pixels() -> Tensor:
        return torch.rand(3, 70, 42, generator=generator) * 2 - 1

    return [
        Segment.vae(latents(), GRID),
        Segment.vit(pixels()),
        Segment.text(torch.randint(NUM_WORDS, (num_words,), generator=generator), drop=drop_text),
        Segment.noise(latents(), 0.7, GRID),
        Segment.vae(latents(), GRID),
        Segment.vit(pixels()),
        Segment.noise(latents(), 0.4, GRID),
    ]


def packed_velocities(model: UnifiedModel, samples: list[list[Segment]]) -> Tensor:
    """(B, 2, N, D) of the two noisy images, all samples in one pack."""
    packed = pack(samples, model.config)
    velocity_MD = model(packed).velocity_MD
    return torch.stack([torch.stack([velocity_MD[rows] for rows in of]) for of in packed.noise_slices])


def cached_velocities(model: UnifiedModel, samples: list[list[Segment]]) -> Tensor:
    """The same, segment after segment on a cache."""
    cache, found = model.new_cache(len(samples)), []
    for segments in zip(*samples, strict=True):
        if segments[0].kind != "noise":
            model.prefill(cache, segments)
            continue
        x_BND = torch.stack([segment.data for segment in segments])
        found.append(model.velocity(cache, x_BND, torch.tensor([segments[0].t]), GRID))
    return torch.stack(found, 1)


def gap(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).square().mean() / expected.square().mean()).sqrt().item()


def test_all_routes_agree_in_float32_and_bfloat16(wide_model: UnifiedModel) -> None:
    samples = [chain_of(3, seed=1), chain_of(17, seed=2), chain_of(9, seed=3, drop_text=True)]
    exact = packed_velocities(wide_model, samples)
    assert 0.1 < exact.square().mean().sqrt().item() < 10
    assert gap(exact[:, 0], exact[:, 1]) > 0.5  # the two images are not alike
    gaps: dict[str, float] = {}
    attentions: tuple[Attention, ...] = ("dense", "segments")
    for dtype, bound in BOUND.items():
        model = wide_model.to(dtype)
        for attention in attentions:
            model.compute_as(ComputeConfig(attention=attention))
            routes = {
                "packed": packed_velocities(model, samples),
                "each alone": torch.cat([packed_velocities(model, [sample]) for sample in samples]),
                "cached": cached_velocities(model, samples),
            }
            for name, found in routes.items():
                gaps[f"{name}, {attention}, {dtype}"] = gap(found, exact)
                assert gaps[f"{name}, {attention}, {dtype}"] < bound, gaps
