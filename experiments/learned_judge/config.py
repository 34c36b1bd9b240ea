"""What the learned judge is, what it learns from and for how long. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gvcot.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """A Qwen3-VL of a million parameters."""

    width: int = 128
    """Hidden size of ViT and decoder."""

    heads: int = 4
    """Attention heads of both."""

    mlp: int = 256
    """Hidden size of both feed-forward layers."""

    vit_layers: int = 2
    layers: int = 4
    """Layers of the decoder."""

    patch: int = 16
    """Pixels per side of an image token; the ViT's patches are not merged."""

    image_side: int = 64
    """Images are brought to this many pixels per side, squared, before they are cut into patches."""

    vocab: int = 640
    """Tokens, of which 256 are bytes."""

    rope_theta: float = 100.0
    """Base of the rotary embedding; small, because an image is only some tokens wide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The edits that the judge learns from."""

    seed: int = 0
    """Of the scenes and of what is done to them."""

    num_scenes: int = 8_000
    """Scenes of the training split, standard level."""

    first_scene: int = 1_000_000
    """Index of the first one; the shipped model was trained on scenes before it."""

    edits_per_scene: int = 5
    """Edits made by hand of each scene: targets, sources, blends, wrong ones, with or without flaws."""

    num_drawn: int = 8_000
    """Scenes of which the shipped model also draws an edit."""

    policy: str = "warm_start"
    """The model that draws and whose codec all images go through; a folder, or the shipped one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedJudgeConfig:
    """One training of the judge."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)

    seed: int = 0
    """Of the first weights and the order of the batches."""

    steps: int = 2_400
    """Optimiser steps."""

    scenes_per_step: int = 8
    edits_per_scene: int = 4
    """Edits of each of them per step; each is asked about SC and PQ."""

    pointers: int = 2

    w_point: float = 0.3
    w_see: float = 3.0
    w_measure: float = 3.0

    lr: float = 4e-3
    """Peak learning rate of embeddings, norms and biases."""

    matrix_lr: float = 4e-3
    """Peak learning rate of the layers' matrices (Muon)."""

    warmup: int = 50
    """Steps over which both rise; then they fall linearly to 0."""

    weight_decay: float = 0.01

    spread: float = 0.2
    """How wide the digits' distribution is that the judge learns, as in `ScenesJudgeConfig.spread`."""
