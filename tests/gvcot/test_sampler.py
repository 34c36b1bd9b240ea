"""Sampling on cached prefixes is the packed model, integrated by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from gvcot import seeds
from gvcot.chain import KEEP, Chain, Drop
from gvcot.data import scenes
from gvcot.errors import ConfigError, DataError
from gvcot.model import flow
from gvcot.model.config import ViTConfig
from gvcot.model.pretrained import Pretrained
from gvcot.model.sequence import Segment, pack
from gvcot.sampler import Drawn, NoiseFn, condition_of, draw, ode_denoiser, vit_pixels
from gvcot.types import ChainConfig, EditSample, GuidanceConfig, ImagePhase

STEPS, SHIFT = 3, 2.0


@pytest.fixture
def chain(policy: Pretrained) -> Chain:
    return Chain(ChainConfig(), policy.tokenizer, has_vit=True)


def noise_of(rows: Sequence[str]) -> NoiseFn:
    return lambda name, shape: seeds.noise_BND([seeds.derive(row, name) for row in rows], shape[1:])


def sample(
    policy: Pretrained,
    chain: Chain,
    samples: Sequence[EditSample],
    rows: Sequence[str] | None = None,
    **options: Any,
) -> Drawn:
    return draw(
        policy.model,
        policy.codec,
        chain,
        condition_of(samples, policy.model.config, policy.codec, chain),
        denoise=ode_denoiser(STEPS, SHIFT),
        noise=noise_of(rows or [s.sample_id for s in samples]),
        **options,
    )


def final(drawn: Drawn, phase: int) -> Tensor:
    found = drawn.trajectory.phases[phase]
    assert isinstance(found, ImagePhase)
    return found.final_BND


def no_guidance(v: Tensor, now: float) -> Tensor:
    return v


@torch.no_grad()
def euler_by_packs(
    policy: Pretrained,
    prefixes: list[list[Segment]],
    x_ND: Tensor,
    grid: tuple[int, int],
    combine: Callable[..., Tensor] = no_guidance,
) -> Tensor:
    times = [SHIFT * u / (1 + (SHIFT - 1) * u) for u in torch.linspace(1, 0, STEPS + 1).tolist()]
    for now, after in pairwise(times):
        packs = [pack([[*p, Segment.noise(x_ND, now, grid)]], policy.model.config) for p in prefixes]
        x_ND = x_ND + (after - now) * combine(*(policy.model(p).velocity_MD for p in packs), now=now)
    return x_ND


def test_draw_is_an_euler_loop_over_packed_forwards(policy: Pretrained, chain: Chain) -> None:
    samples = scenes.samples("val", range(2))
    drawn = sample(policy, chain, samples)
    config = policy.model.config
    condition = drawn.trajectory.condition
    assert config.vit is not None
    for row, one in enumerate(samples):
        noise = noise_of([one.sample_id])
        prefix = chain.prefix(condition, row)
        x_cot = euler_by_packs(policy, [prefix], noise("x_cot", (1, 16, 64))[0], condition.grid)
        decoded = policy.codec.decode(flow.unpatchify(x_cot[None], condition.grid, config.latent_patch))
        prefix = prefix + chain.feedback(x_cot, vit_pixels(decoded, config.vit)[0], condition.grid)
        x_edit = euler_by_packs(policy, [prefix], noise("x_edit", (1, 16, 64))[0], condition.grid)
        torch.testing.assert_close(final(drawn, 0)[row], x_cot, atol=1e-4, rtol=0)
        torch.testing.assert_close(final(drawn, 1)[row], x_edit, atol=1e-4, rtol=0)
        torch.testing.assert_close(drawn.images["x_cot"][row], decoded[0], atol=1e-4, rtol=0)


def test_guidance_is_against_contexts_without_the_instruction_and_without_any_image(
    policy: Pretrained, chain: Chain
) -> None:
    samples, config = scenes.samples("val", range(2)), policy.model.config
    guidance = GuidanceConfig(text_scale=3.0, image_scale=1.5, interval=(0.6, 1.0), renorm="none")
    drawn = sample(policy, chain, samples, guidance=guidance)

    def combine(v: Tensor, no_text: Tensor, no_image: Tensor, now: float) -> Tensor:
        by_text = no_text + 3.0 * (v - no_text)
        return no_image + 1.5 * (by_text - no_image) if now > 0.6 else v

    drops = [KEEP, Drop(text=True), Drop(vae=True, vit=True)]
    condition, x_cot = drawn.trajectory.condition, final(drawn, 0)
    assert config.vit is not None
    for row, one in enumerate(samples):
        noise = noise_of([one.sample_id])
        prefixes = [chain.prefix(condition, row, drop) for drop in drops]
        reasoning = euler_by_packs(policy, prefixes, noise("x_cot", (1, 16, 64))[0], condition.grid, combine)
        torch.testing.assert_close(x_cot[row], reasoning, atol=1e-4, rtol=0)
        seen = vit_pixels(drawn.images["x_cot"][row : row + 1], config.vit)[0]
        feedback = [chain.feedback(reasoning, seen, condition.grid, drop) for drop in drops]
        prefixes = [p + f for p, f in zip(prefixes, feedback, strict=True)]
        edit = euler_by_packs(policy, prefixes, noise("x_edit", (1, 16, 64))[0], condition.grid, combine)
        torch.testing.assert_close(final(drawn, 1)[row], edit, atol=1e-4, rtol=0)
    assert (final(sample(policy, chain, samples), 1) - final(drawn, 1)).abs().max() > 0.1


@pytest.mark.parametrize("guidance", [GuidanceConfig(), GuidanceConfig(text_scale=5.0, interval=(0.0, 0.1))])
def test_guidance_that_never_holds_changes_nothing(
    policy: Pretrained, chain: Chain, guidance: GuidanceConfig
) -> None:
    samples = scenes.samples("val", range(1))  # the last step begins at t = .5
    guided = sample(policy, chain, samples, guidance=guidance)
    assert torch.equal(final(guided, 1), final(sample(policy, chain, samples), 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_scale": -1.0}, "guidance.text_scale"),
        ({"image_scale": float("nan")}, "guidance.image_scale"),
        ({"interval": (0.5, 0.5)}, "guidance.interval"),
        ({"renorm_min": 2.0}, "guidance.renorm_min"),
    ],
)
def test_wrong_guidance_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GuidanceConfig(**options)


def test_a_row_does_not_depend_on_its_batch(policy: Pretrained, chain: Chain) -> None:
    samples = scenes.samples("val", range(3))
    together, alone = sample(policy, chain, samples), sample(policy, chain, samples[1:2])
    for phase in (0, 1):
        torch.testing.assert_close(final(together, phase)[1:2], final(alone, phase), atol=1e-5, rtol=0)


def test_chains_of_a_prompt_are_adjacent_and_share_its_conditions(policy: Pretrained, chain: Chain) -> None:
    samples = scenes.samples("val", range(2))
    repeated = sample(policy, chain, samples, rows=["a", "b", "c", "d"], chains_per_prompt=2)
    assert repeated.trajectory.condition.source_latent_BND.shape[0] == 2
    apart = sample(policy, chain, [samples[0], samples[0], samples[1], samples[1]], rows=["a", "b", "c", "d"])
    for phase in (0, 1):
        torch.testing.assert_close(final(repeated, phase), final(apart, phase), atol=1e-5, rtol=0)
    assert (final(repeated, 1)[0] - final(repeated, 1)[1]).abs().max() > 0.1


def test_a_given_reasoning_image_is_taken_as_it_is(policy: Pretrained, chain: Chain) -> None:
    samples = scenes.samples("val", range(2))
    drawn = sample(policy, chain, samples)
    again = sample(policy, chain, samples, given={"x_cot": final(drawn, 0)})
    phase = again.trajectory.phases[0]
    assert isinstance(phase, ImagePhase)
    assert phase.window.size == 0
    assert phase.logprob_BW.shape == (2, 0)
    assert torch.equal(phase.final_BND, final(drawn, 0))
    assert torch.equal(again.images["x_edit"], drawn.images["x_edit"])
    other = sample(policy, chain, samples, given={"x_cot": final(drawn, 0).flip(0)})
    assert not torch.equal(other.images["x_edit"], drawn.images["x_edit"])


def test_an_edit_that_is_drawn_first_does_not_see_the_reasoning(policy: Pretrained) -> None:
    edit_first = Chain(ChainConfig(name="edit_first"), policy.tokenizer, has_vit=True)
    samples = scenes.samples("val", range(2))
    drawn = sample(policy, edit_first, samples)
    assert list(drawn.images) == ["x_edit", "x_cot"]
    other = sample(policy, edit_first, samples, given={"x_cot": final(drawn, 1).flip(0)})
    assert torch.equal(other.images["x_edit"], drawn.images["x_edit"])
    after = sample(policy, edit_first, samples, given={"x_edit": final(drawn, 0).flip(0)})
    assert not torch.equal(after.images["x_cot"], drawn.images["x_cot"])


def test_sampling_leaves_no_trace_in_the_model(policy: Pretrained, chain: Chain) -> None:
    samples = scenes.samples("val", range(1))
    assert torch.equal(final(sample(policy, chain, samples), 1), final(sample(policy, chain, samples), 1))


def test_images_are_resized_to_whole_vit_patches() -> None:
    vit = ViTConfig(hidden=8, layers=1, heads=1, mlp=8, patch=8, max_side=8)
    same = torch.rand(1, 3, 64, 64)
    assert vit_pixels(same, vit) is same
    assert vit_pixels(torch.rand(1, 3, 128, 96), vit).shape == (1, 3, 64, 48)
    assert vit_pixels(torch.rand(1, 3, 20, 12), vit).shape == (1, 3, 16, 16)  # 12 / 8 rounds to 2


def test_sources_of_different_sizes_are_refused(policy: Pretrained, chain: Chain) -> None:
    samples = [scenes.generate(0, 0), scenes.generate(0, 1, size=80)]
    with pytest.raises(DataError, match="share one size"):
        condition_of(samples, policy.model.config, policy.codec, chain)
