"""How a model is computed and which small part of it is trained. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gvcot.errors import ConfigError

Attention = Literal["auto", "dense", "segments"]
"""How attention is computed: under a mask over padded samples (the reference), or segment by segment without
one (see `gvcot.model.spans`); "auto" chooses by the length of the longest sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """What changes memory and speed, and results by rounding only."""

    attention: Attention = "auto"
    """See `Attention`."""

    activation_checkpointing: bool = False
    """Keep only what enters each layer of decoder and ViT, and compute it again in the backward pass: a
    fraction of the memory of activations for about a third more time."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations in forward and backward. Trained weights have a float32 master copy,
    gradients are reduced in float32. bfloat16 goes through FSDP2, with one worker too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig:
    """Low-rank adapters (arXiv 2106.09685) instead of training weights themselves.

    Raises:
        ConfigError: a rank below 1 or an alpha of 0 or less.
    """

    rank: int = 64
    """Rank of each adapter."""

    alpha: float = 128.0
    """An adapter's product is scaled by alpha / rank."""

    experts: Literal["generation", "both"] = "generation"
    """Whose linear layers get adapters: the generation expert's, or the understanding expert's too."""

    also: tuple[Literal["vae2llm", "llm2vae", "time_embedder"], ...] = ()
    """Small projections that are trained as a whole beside the adapters."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(
                f"lora: expected a rank of at least 1 and alpha above 0; got {self.rank} and {self.alpha}"
            )
