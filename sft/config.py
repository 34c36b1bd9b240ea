"""Configuration of supervised fine-tuning: one stage is one run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from gvcot.data.pairs.config import PairsConfig
from gvcot.data.scenes.levels import WorldConfig
from gvcot.data.scenes.splits import Split
from gvcot.errors import ConfigError, closest
from gvcot.model.compute import ComputeConfig, LoRAConfig
from gvcot.model.config import ImagesConfig
from gvcot.types import Feedback, GuidanceConfig

DESCRIBE = "describe"
"""An understanding task of the base stage: the painted region in words."""

INVENTORY = "inventory"
"""Another: everything in the source in words, each with its place."""

LOCATE = "locate"
"""And its inverse: where the region of an instruction is, and what, in words."""

POINT = "point"
"""Where things are that several referring expressions mean, in words, one after the other."""

PHASES = ("x_cot", "x_edit")
"""The images that a chain can have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes of a model that starts from scratch (ignored where `init` names a checkpoint)."""

    image_size: int = 64
    """Pixels per side."""

    hidden: int = 128
    """Width of the backbone; at least twice the values per latent token (64)."""

    layers: int = 4
    """Decoder layers."""

    codec_width: int = 32
    """Channels of the TinyAE at 1/4 of the resolution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which scenes, or image pairs, are trained on."""

    pairs: PairsConfig | None = None
    """A dataset of image pairs; None: Scenes."""

    seed: int = 0
    """World seed of the training split; of a dataset without end, the seed of its order."""

    num_samples: int | None = 24_000
    """Training samples, of a dataset its first ones; they are encoded once, then drawn in seeded epochs.
    None: without end, encoded while the model trains."""

    reuse: int = 4
    """Of an unlimited set: epochs for which a shard is used before it is dropped. Encoding costs 1 / reuse of
    what it would."""

    shard: int = 1_000
    """Of an unlimited set: samples that are encoded at a time; up to three shards are in memory."""

    world: WorldConfig = field(default_factory=WorldConfig)
    """How hard the training scenes are, and which tasks they have."""

    cache_dir: str = "runs/cache"
    """Encoded samples of a bounded set are kept here, by the codec's and the world's (or the dataset's)
    fingerprint."""

    def __post_init__(self) -> None:
        for key in ("num_samples", "reuse", "shard"):
            value = getattr(self, key)
            if value is not None and value < 1:
                unlimited = " (null: unlimited)" if key == "num_samples" else ""
                raise ConfigError(f"{key}: expected at least 1{unlimited}; got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DropConfig:
    """Condition dropout, drawn independently per row and condition (BAGEL trains with .1 / .3 / .3)."""

    text: float = 0.1
    vae: float = 0.3
    vit: float = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW, or Muon and AdamW, with linear warm-up and cosine decay."""

    lr: float = 1e-3
    """Peak learning rate."""

    matrix_lr: float | None = None
    """Peak learning rate of the matrices in decoder and ViT layers, which Muon then moves; null: AdamW moves
    them like everything else. Its steps are scaled to AdamW's size, so learning rates compare."""

    final_lr_share: float = 0.05
    """Learning rate at the last step, as a share of the peak."""

    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    """Maximum L2 norm of the gradient."""

    ema_decay: float = 0.998
    """Decay of the weights' moving average, which is what a stage hands on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Evaluation on the validation split, or on a dataset, during training."""

    every: int = 1_000
    """Steps between evaluations; 0: only at the end."""

    pairs: PairsConfig | None = None
    """A dataset of image pairs to evaluate on; None: a split of Scenes, whatever the stage trains on."""

    split: Split = "val"
    num_samples: int = 128
    """Samples at each evaluation, of a dataset its first good ones."""

    num_steps: int = 8
    """ODE steps per image."""

    shift: float = 1.0
    """Shift of the sampling grid towards noise."""

    batch: int = 64
    """Samples drawn at once."""

    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Classifier-free guidance; none by default."""

    chain: str = "gvcot"
    """The chain that is sampled."""

    world: WorldConfig = field(default_factory=WorldConfig)
    """The world that is evaluated on, whatever the stage trains on."""

    @property
    def name(self) -> str:
        """What the evaluations are called: after the split, or the dataset."""
        return self.split if self.pairs is None else self.pairs.name


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig:
    """One supervised stage. `init` decides what it starts from."""

    name: str
    """Run name; the run directory is `runs/<name>`."""

    codec: str
    """Checkpoint folder whose codec is used."""

    mix: dict[str, float]
    """Kinds of samples and their shares: chain names (each image of the chain is a flow target), "describe",
    "inventory", "locate" and "point"."""

    steps: int
    """Optimiser steps."""

    init: str | None = None
    """Checkpoint folder to start from; None: random weights of `model`."""

    train: Literal["all", "generation", "upper"] = "all"
    """Which parameters move: all, the generation expert with its latent and time projections (the paper's
    stage 1), or the upper half of the decoder's layers."""

    feedback: tuple[Feedback, ...] = ("vae", "vit")
    """See `gvcot.types.ChainConfig.feedback`."""

    batch_size: int = 32
    """Rows per step."""

    noise_copies: int = 1
    """Independent noise levels per image and step; they share one prefix in the pack."""

    antithetic: bool = True
    """Draw the times of an image's copies in antithetic pairs, one on each side of the median."""

    shift: float = 1.0
    """Shift of the training times towards noise: t <- s t / (1 + (s - 1) t)."""

    ce_weight: float = 0.25
    """Weight of the text loss beside the flow loss."""

    phase_loss_weights: dict[str, float] = field(default_factory=dict)
    """Weight of each image's flow loss, by phase ("x_cot", "x_edit"); 1 for those that aren't named."""

    seed: int = 0
    """Seed of weights, data order, times, noise and dropout."""

    lora: LoRAConfig | None = None
    """Train low-rank adapters instead of the weights of `train`; the result is a plain model again."""

    compute: ComputeConfig = field(default_factory=ComputeConfig)

    workers: int = 1
    """Processes that share each batch's rows: on this machine, or those that `torchrun` has started."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model is; with "cuda" each worker has a GPU of its own."""

    sharding: Literal["replicate", "fsdp2"] = "replicate"
    """How several workers hold the model: whole on each with averaged gradients, or sharded (FSDP2)."""

    threads: int = 0
    """Torch threads of each worker; 0: all cores of a machine, divided among its workers."""

    log_every: int = 20
    save_every: int = 200

    images: ImagesConfig = field(default_factory=ImagesConfig)
    """Sizes at which the model takes images in; null: as its folder says."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    drop: DropConfig = field(default_factory=DropConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        if not self.mix or min(self.mix.values()) < 0 or sum(self.mix.values()) <= 0:
            raise ConfigError(f"mix: expected non-negative shares with a positive sum; got {self.mix}")
        for phase, weight in self.phase_loss_weights.items():
            if phase not in PHASES:
                raise ConfigError(f"phase_loss_weights: unknown phase {phase!r}; {closest(phase, PHASES)}")
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"phase_loss_weights.{phase}: expected a number >= 0; got {weight}")
        for key in ("steps", "batch_size", "noise_copies", "workers"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}: expected at least 1; got {getattr(self, key)}")
        if self.lora is not None and self.train != "all":
            raise ConfigError(
                f"lora: adapters are trained instead of the part that train={self.train} names; "
                "leave train out"
            )
        if self.compute.dtype != "float32" and self.sharding != "fsdp2":
            raise ConfigError(f"compute.dtype={self.compute.dtype} goes through FSDP2; set sharding=fsdp2")
        if self.sharding == "fsdp2" and self.optim.matrix_lr is not None:
            raise ConfigError(
                "optim.matrix_lr: Muon needs whole matrices; set it to null, or sharding=replicate"
            )
        if self.workers > self.batch_size:
            raise ConfigError(f"workers: expected at most batch_size={self.batch_size}; got {self.workers}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecTrainConfig:
    """Training of the small codec on scenes: sources, targets and painted reasoning images."""

    name: str
    steps: int
    """Optimiser steps."""

    width: int = 32
    """Channels at 1/4 of the resolution."""

    z: int = 16
    """Latent channels (BAGEL's geometry)."""

    image_size: int = 64
    num_samples: int = 8_000
    """Scenes; three images each."""

    batch_size: int = 32
    """Images per step."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=4e-3))
    """AdamW's; the average's decay is not used."""

    kl_weight: float = 1e-6
    """Weight of the KL divergence to a unit normal, per latent value."""

    seed: int = 0
    threads: int = 0
    log_every: int = 50
    save_every: int = 500

    def __post_init__(self) -> None:
        if self.optim.matrix_lr is not None:
            raise ConfigError("optim.matrix_lr: a codec has convolutions, no matrices; leave it null")
