"""Sampling of a chain on cached prefixes: what `gvcot edit`, evaluation, panels and rollouts share.

The loop over phases is here once. How a phase's noise becomes an image is a `Denoiser`: the ODE below,
or the stochastic window of `rollout/sample.py`; so sampling with noise level 0 *is* plain sampling.

Legend: P prompts, G chains per prompt, B = P * G, S steps, N latent tokens, D values per token, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gvcot.chain import Chain
from gvcot.context import Context
from gvcot.data.images import to_tensor
from gvcot.model import flow
from gvcot.model.codec import Codec, decode_in_parts, encode_in_parts
from gvcot.model.config import UnifiedConfig, ViTConfig
from gvcot.model.unified import UnifiedModel
from gvcot.types import Condition, EditSample, GuidanceConfig, ImagePhase, Trajectory, Window

VelocityFn = Callable[[Tensor, Tensor], Tensor]
"""(x_BND, t_B) -> velocity_BND, given everything that stands before the image."""

Denoiser = Callable[[VelocityFn, str, Tensor, tuple[int, int]], ImagePhase]
"""(velocity, phase name, initial noise_BND, grid) -> the phase, without feedback pixels."""

NoiseFn = Callable[[str, tuple[int, int, int]], Tensor]
"""(phase name, (B, N, D)) -> initial noise_BND."""


@dataclass(kw_only=True, slots=True)
class Drawn:
    """B sampled chains and their decoded images."""

    trajectory: Trajectory
    """Latents, log-probs and conditions; its condition has one row per *prompt*."""

    images: dict[str, Tensor]
    """Phase name -> (B, 3, H, W) in [-1, 1]."""


def condition_of(
    samples: Sequence[EditSample], config: UnifiedConfig, codec: Codec, chain: Chain
) -> Condition:
    """Encode sources and instructions of samples that share one image size.

    Raises:
        DataError: images of different sizes, sizes that the codec cannot take, or unknown words.
    """
    source_P3HW = to_tensor([s.source_HW3 for s in samples])
    with torch.no_grad():
        latent = encode_in_parts(codec, source_P3HW)
    return Condition(
        source_latent_BND=flow.patchify(latent, config.latent_patch),
        source_vit_B3HW=None if config.vit is None else vit_pixels(source_P3HW, config.vit),
        instruction_BT=chain.encode_prompts([s.instruction for s in samples]),
        grid=config.latent_grid(source_P3HW.shape[-2], source_P3HW.shape[-1]),
    )


def vit_pixels(images_B3HW: Tensor, vit: ViTConfig) -> Tensor:
    """Resize to whole ViT patches as `vit.fit` says, keeping the aspect ratio roughly."""
    height, width = images_B3HW.shape[-2:]
    size = vit.fit(height, width)
    if size == (height, width):
        return images_B3HW
    return F.interpolate(images_B3HW, size=size, mode="bicubic", antialias=True).clamp(-1.0, 1.0)


def ode_denoiser(num_steps: int, shift: float) -> Denoiser:
    """Plain Euler sampling: x <- x - v * dt over BAGEL's shifted grid."""
    sigmas = flow.sigma_schedule(num_steps, shift)

    def denoise(velocity: VelocityFn, name: str, x_BND: Tensor, grid: tuple[int, int]) -> ImagePhase:
        start_BVND = x_BND[:, None]
        for i in range(num_steps):
            v_BND = velocity(x_BND, sigmas[i].expand(len(x_BND)))
            x_BND = x_BND + v_BND * (sigmas[i + 1] - sigmas[i])
        return ImagePhase(
            name=name,
            grid=grid,
            sigmas=sigmas,
            window=Window(start=0, size=0),
            latents_BVND=start_BVND,
            logprob_BW=x_BND.new_zeros(len(x_BND), 0),
            final_BND=x_BND,
            feedback_vit_B3HW=None,
        )

    return denoise


@torch.no_grad()
def draw(
    model: UnifiedModel,
    codec: Codec,
    chain: Chain,
    condition: Condition,
    *,
    denoise: Denoiser,
    noise: NoiseFn,
    chains_per_prompt: int = 1,
    given: dict[str, Tensor] | None = None,
    guidance: GuidanceConfig | None = None,
) -> Drawn:
    """Sample every phase of a chain.

    Args:
        model: its `prefill` and `velocity` are used; the prompt's prefix is computed once per prompt.
        codec: decodes each phase.
        chain: what is generated, and what conditions it.
        condition: P rows, one per prompt.
        denoise: turns noise into an image.
        noise: the initial noise of a phase.
        chains_per_prompt: G; rows of one prompt are adjacent in the result.
        given: clean latents (B, N, D) of phases that are not to be drawn but taken as they are
            (probes such as a shuffled or a true reasoning image).
        guidance: None for none.

    Returns:
        B = P * G chains with their images. A given phase has an empty window.
    """
    context = Context(model, chain, condition, chains_per_prompt=chains_per_prompt, guidance=guidance)
    grid = condition.grid
    num_prompts, num_tokens, token_dim = condition.source_latent_BND.shape
    latent_shape = (num_prompts * chains_per_prompt, num_tokens, token_dim)
    phases: list[ImagePhase] = []
    images: dict[str, Tensor] = {}

    for spec in chain.phases:
        if given is not None and spec.name in given:
            phase = given_phase(spec.name, given[spec.name], grid)
        else:
            phase = denoise(context.velocity, spec.name, noise(spec.name, latent_shape), grid)
        latent = flow.unpatchify(phase.final_BND, grid, model.config.latent_patch)
        images[spec.name] = decode_in_parts(codec, latent)
        if spec is not chain.phases[-1]:
            if chain.sees_decoded:
                assert model.config.vit is not None
                phase.feedback_vit_B3HW = vit_pixels(images[spec.name], model.config.vit)
            context.append(phase)
        phases.append(phase)
    return Drawn(trajectory=Trajectory(condition=condition, phases=list(phases)), images=images)


def given_phase(name: str, final_BND: Tensor, grid: tuple[int, int]) -> ImagePhase:
    """A phase whose image was not drawn by the model."""
    return ImagePhase(
        name=name,
        grid=grid,
        sigmas=final_BND.new_zeros(1),
        window=Window(start=0, size=0),
        latents_BVND=final_BND[:, None],
        logprob_BW=final_BND.new_zeros(len(final_BND), 0),
        final_BND=final_BND,
        feedback_vit_B3HW=None,
    )
