"""What the learned judge is, what it learns from and for how long. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gvcot.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """A Qwen3-VL of a million parameters.

    Raises:
        ConfigError: sizes that don't divide.
    """

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
    """Pixels per side of an image token; the ViT's patches are not merged. 16 is a cell of Scenes."""

    image_side: int = 64
    """Images are brought to this many pixels per side, squared, before they are cut into patches."""

    vocab: int = 640
    """Tokens, of which 256 are bytes."""

    rope_theta: float = 100.0
    """Base of the rotary embedding; small, because an image is only some tokens wide."""

    def __post_init__(self) -> None:
        if self.width % (4 * self.heads):
            raise ConfigError(
                f"network.width is {self.width}, expected a multiple of 4 x heads = {4 * self.heads}"
            )
        if self.image_side % self.patch:
            raise ConfigError(
                f"network.image_side is {self.image_side}, expected a multiple of patch = {self.patch}"
            )

    @property
    def side(self) -> int:
        """Pieces of an image per side."""
        return self.image_side // self.patch


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Edits of scenes of the standard level, with their exact scores."""

    split: Literal["train", "val", "test"] = "train"
    seed: int = 0
    """Of the scenes and of what is done to them."""

    num_scenes: int = 6_000
    first_scene: int = 1_000_000
    """Index of the first one; the shipped model was trained on scenes before it."""

    edits_per_scene: int = 5
    """Edits made by hand of each scene: targets, sources, blends, wrong ones, with or without flaws."""

    drawn: bool = True
    """Whether `policy` also draws an edit of each scene."""

    policy: str = "warm_start"
    """The model that draws and whose codec all images go through; a folder, or the shipped one."""

    cache_dir: str = "runs/cache"
    """Edits are kept here, 512 scenes to a file of some 46 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedJudgeConfig:
    """One training of the judge."""

    name: str
    """Of the run, runs/<name>."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)

    val: DataConfig = field(default_factory=lambda: DataConfig(split="val", first_scene=0, num_scenes=512))
    """Edits of other scenes, with which the judge is compared at the end."""

    seed: int = 0
    """Of the first weights and of the batches."""

    steps: int = 2_000
    """Optimiser steps. Fewer make a judge that errs more."""

    scenes_per_step: int = 8
    edits_per_scene: int = 4
    """Edits of each of them per step; each is asked about SC and PQ."""

    expressions_per_scene: int = 4
    """Referring expressions per scene and step beside the instruction, whose things are to be pointed at."""

    spread: float = 0.2
    """How wide the digits' distribution is that the judge learns, as in `ScenesJudgeConfig.spread`."""

    pointing_weight: float = 0.3
    """Of the hint where things are that words mean."""

    seeing_weight: float = 3.0
    """Of the hint what changed at each place."""

    measuring_weight: float = 3.0
    """Of the hint which measures SC is made of."""

    lr: float = 4e-3
    """Peak learning rate of embeddings, norms and biases."""

    matrix_lr: float = 4e-3
    """Peak learning rate of the layers' matrices (Muon)."""

    warmup_steps: int = 50
    """Steps over which both rise; then they fall linearly to 0."""

    weight_decay: float = 0.01
    grad_clip: float = 1.0
    """Greatest L2 norm of the gradient."""

    threads: int = 1
    """Torch threads."""

    log_every: int = 20
    save_every: int = 200
