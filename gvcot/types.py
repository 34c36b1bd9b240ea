"""The records that travel through the system: samples in, trajectories out, scores back.

Dimension legend (used across the project):
    P prompts per step, G chains per prompt, B = P * G chains, K phases of a chain, S denoising steps,
    W steps inside a phase's SDE window, V = W + 1 window states, N latent tokens per image,
    D values per latent token, T text tokens, H W pixels, R reward components.

This module does not import torch at run time, so configs, the command line and the procedural world
can use it cheaply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gvcot.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

Referral = Literal["spatial", "property", "knowledge"]
"""How an instruction points at its region (the three kinds of SREdit-Bench)."""

PaintStyle = Literal["mask", "box"]
"""How a region is painted: its silhouette, or a filled rectangle with an opaque border (insertions)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """One connected part of what an instruction refers to."""

    box: tuple[int, int, int, int]
    """(x0, y0, x1, y1) in pixels; x1 and y1 are exclusive."""

    mask_HW: np.ndarray
    """bool; True inside the region."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditSample:
    """One editing problem, with everything that is known about its answer.

    Example:
        sample = scenes.generate(seed=0, index=7)
        sample.instruction      # "remove the second circle from the left"
        sample.source_HW3       # uint8 (64, 64, 3)
    """

    sample_id: str
    """Unique and stable, e.g. "scenes/train/0/7"."""

    source_HW3: np.ndarray
    """uint8 RGB, the image to edit."""

    instruction: str
    """What to do, in words of the tokenizer's vocabulary."""

    task: str
    """Task name, e.g. "color"; a key of the task table."""

    referral: Referral | Literal["unknown"]
    """How the instruction points at its region."""

    mask_HW: np.ndarray
    """bool; what the instruction refers to, i.e. what the reasoning image must paint."""

    regions: tuple[Region, ...]
    """The parts of `mask_HW`, one or several."""

    paint: PaintStyle = "mask"
    """How the reasoning image paints the region."""

    region_caption: str = ""
    """The region in words ("a small red circle"), for region description; empty when unknown."""

    scene_caption: str = ""
    """Everything in the source in words, with the place of each in coordinate words; empty when unknown."""

    pointers: tuple[tuple[str, str], ...] = ()
    """Referring expressions for things of the source, each with the place (in words) of what it means;
    empty when unknown."""

    target_HW3: np.ndarray | None = None
    """uint8 RGB, the exact edited image; None where no ground truth exists."""

    change_mask_HW: np.ndarray | None = None
    """bool; where target and source may differ. A superset of the differing pixels; not equal to
    `mask_HW`: moving or scaling a thing changes pixels outside it."""

    things: tuple[Region, ...] = ()
    """Everything that stands in the source, as silhouettes that don't overlap; empty where that isn't
    known."""

    referents: tuple[int, ...] = ()
    """Which of `things` the instruction means; empty where it means none of them (the place of an insertion,
    a wall)."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else a dataset says of the sample; plain values."""


Feedback = Literal["vae", "vit"]
"""The encoders through which later phases see a drawn image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainConfig:
    """Which chain a model follows from source and instruction to the edit."""

    name: str = "gvcot"
    """A key of `gvcot.chain.CHAINS`: "direct" (edit at once), "gvcot" (draw where, then edit) and others."""

    feedback: tuple[Feedback, ...] = ("vae", "vit")
    """How the second image of a chain sees the first: its own clean latents ("vae", never re-encoded) and/or
    the ViT tokens of its decoding ("vit", where the model has a ViT). The same in training, sampling and
    replay."""


Renorm = Literal["none", "global", "channel", "text_channel"]
"""How a guided velocity is brought back to the length of the unguided one: not, over a whole image, per
token, or per token before images guide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceConfig:
    """Classifier-free guidance while images are drawn, see `gvcot.model.flow.cfg_combine`. Each scale other
    than 1 costs another forward pass per step. Rollouts of RL are drawn without it."""

    text_scale: float = 1.0
    """Of the instruction; 1: no guidance by it. BAGEL edits with 4."""

    image_scale: float = 1.0
    """Of the images, the source and those drawn before; 1: no guidance by them. BAGEL edits with 2."""

    interval: tuple[float, float] = (0.0, 1.0)
    """Times (low, high] at which guidance holds; 1 is noise."""

    renorm: Renorm = "text_channel"
    renorm_min: float = 0.0
    """Smallest factor of the renormalisation."""

    def __post_init__(self) -> None:
        for name in ("text_scale", "image_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"guidance.{name}: expected a number from 0 on; got {getattr(self, name)}")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ConfigError(f"guidance.interval: expected 0 <= low < high <= 1; got [{low}, {high}]")
        if not 0 <= self.renorm_min <= 1:
            raise ConfigError(f"guidance.renorm_min: expected a share from 0 to 1; got {self.renorm_min}")


@dataclass(kw_only=True, slots=True)
class Condition:
    """What B chains are conditioned on before their first phase. All rows share one image size."""

    source_latent_BND: torch.Tensor
    """fp32 clean latent tokens of the source (the codec's posterior mean)."""

    source_vit_B3HW: torch.Tensor | None
    """Source pixels in [-1, 1] at the ViT's size; None for models without a ViT."""

    instruction_BT: torch.Tensor
    """int64 token ids of the instruction, right-padded with -1."""

    grid: tuple[int, int]
    """Latent tokens per image as (rows, columns)."""


@dataclass(kw_only=True, slots=True)
class Window:
    """The steps of one phase that are sampled stochastically and trained on."""

    start: int
    """First SDE step; steps before and after the window follow the ODE."""

    size: int
    """Number of SDE steps, W; 0 means plain ODE sampling."""


@dataclass(kw_only=True, slots=True)
class ImagePhase:
    """An image drawn by B chains, and what a faithful replay of its SDE steps needs."""

    name: str
    """"x_cot" or "x_edit"."""

    grid: tuple[int, int]
    """Latent tokens as (rows, columns)."""

    sigmas: torch.Tensor
    """fp32 (S + 1,), noise levels from 1 to 0."""

    window: Window
    """Which of the S steps were stochastic."""

    latents_BVND: torch.Tensor
    """fp32 states before, between and after the window's steps; V = W + 1."""

    logprob_BW: torch.Tensor
    """fp32 log-probability of each window step under the sampler: the *mean* over N * D of the
    Normal log-density (flow-GRPO's convention)."""

    final_BND: torch.Tensor
    """fp32 clean latent tokens: the image that was drawn."""

    feedback_vit_B3HW: torch.Tensor | None
    """ViT pixels of the decoded image where later phases see it through the ViT, else None."""


@dataclass(kw_only=True, slots=True)
class TextPhase:
    """Text written by B chains."""

    name: str
    """Phase name, e.g. "thought"."""

    token_ids_BT: torch.Tensor
    """int64, right-padded with -1."""

    logprob_BT: torch.Tensor
    """fp32 log-probability of each token; 0 on padding."""


@dataclass(kw_only=True, slots=True)
class ToolPhase:
    """An image that an external tool supplied; nothing in it is trained."""

    name: str
    """Phase name, e.g. "x_cot"."""

    grid: tuple[int, int]
    """Latent tokens as (rows, columns)."""

    final_BND: torch.Tensor
    """fp32 clean latent tokens of the tool's image."""

    feedback_vit_B3HW: torch.Tensor | None
    """ViT pixels of the tool's image, or None."""


Phase = ImagePhase | TextPhase | ToolPhase


@dataclass(kw_only=True, slots=True)
class Trajectory:
    """B chains: their condition and their phases in order. Dense tensors exist only inside a phase,
    so phases of other kinds and image sizes can stand in one list."""

    condition: Condition
    """What the chains started from."""

    phases: list[Phase]
    """In the order in which they were generated."""


@dataclass(kw_only=True, slots=True)
class RewardResult:
    """What one reward says of B chains: raw, unweighted, unclipped."""

    raw_B: torch.Tensor
    """fp32 scores; the value is meaningless where `valid_B` is False."""

    valid_B: torch.Tensor
    """bool; False marks a *missing* score (a failed judge, an undefined case), never a zero."""

    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    """Named fp32 (B,) components for logging, e.g. {"precision": ..., "recall": ...}."""
