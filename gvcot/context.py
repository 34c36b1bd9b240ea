"""What a chain's images are drawn in: the cached context and, under guidance, contexts that lack something.

Guidance is BAGEL's (arXiv 2505.14683, official inference code): a second context lacks the instruction, a
third one the images. In a chain of several images the third lacks the drawn ones as well as the source; what
is left out keeps its place: positions don't close up.

Legend: P prompts, G chains per prompt, B = P * G chains, N latent tokens, D values per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gvcot.chain import KEEP, Chain, Drop
from gvcot.model import flow
from gvcot.model.unified import UnifiedModel
from gvcot.types import Condition, GuidanceConfig, ImagePhase

NO_TEXT = Drop(text=True)
NO_IMAGE = Drop(vae=True, vit=True)


class Context:
    """The caches of B chains, one per branch of guidance."""

    def __init__(
        self,
        model: UnifiedModel,
        chain: Chain,
        condition: Condition,
        *,
        chains_per_prompt: int = 1,
        guidance: GuidanceConfig | None = None,
    ) -> None:
        """Read sources and instructions, once per prompt and branch.

        Args:
            model: its `prefill` and `velocity` are used.
            chain: what stands before the first image, and how drawn images are fed back.
            condition: P rows, one per prompt.
            chains_per_prompt: G.
            guidance: None, or scales of 1, for plain sampling.
        """
        self._model, self._chain, self._grid = model, chain, condition.grid
        self._guidance = guidance or GuidanceConfig()
        drops = [KEEP]
        if self._guidance.text_scale != 1.0:
            drops.append(NO_TEXT)
        if self._guidance.image_scale != 1.0:
            drops.append(NO_IMAGE)
        num_prompts = len(condition.source_latent_BND)
        self._caches = {}
        for drop in drops:
            cache = model.new_cache(num_prompts)
            prefixes = [chain.prefix(condition, row, drop) for row in range(num_prompts)]
            for segments in zip(*prefixes, strict=True):
                model.prefill(cache, segments)
            self._caches[drop] = cache.repeat(chains_per_prompt) if chains_per_prompt > 1 else cache

    def velocity(self, x_BND: Tensor, t_B: Tensor) -> Tensor:
        """Velocity (B, N, D) of noisy images at times t_B, guided where guidance holds."""
        full_BND = self._velocity(KEEP, x_BND, t_B)
        guided_B = flow.cfg_active(t_B, self._guidance.interval)
        if len(self._caches) == 1 or not guided_B.any():
            return full_BND
        combined_BND = flow.cfg_combine(
            full_BND,
            self._velocity(NO_TEXT, x_BND, t_B) if NO_TEXT in self._caches else full_BND,
            self._velocity(NO_IMAGE, x_BND, t_B) if NO_IMAGE in self._caches else None,
            text_scale=self._guidance.text_scale,
            image_scale=self._guidance.image_scale,
            renorm=self._guidance.renorm,
            renorm_min=self._guidance.renorm_min,
        )
        return torch.where(guided_B[:, None, None], combined_BND, full_BND)

    def _velocity(self, drop: Drop, x_BND: Tensor, t_B: Tensor) -> Tensor:
        return self._model.velocity(self._caches[drop], x_BND, t_B, self._grid)

    def append(self, phase: ImagePhase) -> None:
        """Let later phases see an image that was just drawn."""
        pixels = phase.feedback_vit_B3HW
        for drop, cache in self._caches.items():
            rows = [
                self._chain.feedback(tokens_ND, None if pixels is None else pixels[i], phase.grid, drop)
                for i, tokens_ND in enumerate(phase.final_BND)
            ]
            for segments in zip(*rows, strict=True):
                self._model.prefill(cache, segments)
