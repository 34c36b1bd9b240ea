"""Trains the small CLIP of the rewards `clip_image` and `clip_direction`, and says how well it knows Scenes.

    python -m experiments.clip_scenes                               # some 4 minutes on one core
    python -m experiments.clip_scenes out=gvcot/assets/clip_scenes  # what is shipped

It learns two things from scenes before and after their edits: which caption belongs to an image, and which
instruction to a change. Captions name everything in the scene without its place, because an edit is to be
measured by what there is.

Legend: B scenes, D values of an embedding.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from gvcot.clip_model import CONFIG_FILE, WEIGHTS_FILE, ClipModel, scenes_clip
from gvcot.config import parse, to_dict
from gvcot.data import scenes
from gvcot.data.images import to_tensor
from gvcot.data.scenes import generator
from gvcot.data.scenes.render import render, render_change
from gvcot.data.scenes.world import Scene
from gvcot.errors import ConfigError

SIZE = 64
"""Pixels per side."""

NETWORK: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"layers": [1, 2, 2, 1], "width": 8, "image_size": SIZE},
        "text_cfg": {
            "context_length": 48,
            "vocab_size": 512,
            "width": 64,
            "heads": 4,
            "layers": 2,
            "mlp_ratio": 2.0,
            "pool_type": "eos",
        },
    },
    "preprocess_cfg": {"size": SIZE, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}
"""For open_clip. The images go through residual convolutions: on so few, a transformer learns slower."""

CHOICES = 64
"""Texts among which an image has to find its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScenesConfig:
    """One training of the small CLIP."""

    out: Path = Path("runs/clip_scenes")
    """Folder for the network's configuration, its weights (fp16) and a record."""

    seed: int = 0
    """Of the scenes, the first weights, the order of the batches and the noise."""

    num_scenes: int = 12_288
    """Scenes of the training split, standard level; each gives two images."""

    num_val: int = 512
    """Scenes of the validation split; whole lots of 64 are used."""

    steps: int = 600
    """Optimiser steps."""

    batch_size: int = 64
    """Scenes per step."""

    lr: float = 2e-3
    """Peak learning rate; it rises over the first 50 steps and falls linearly to 0."""

    weight_decay: float = 0.05
    """Of AdamW."""

    noise: float = 0.05
    """Standard deviation of noise on training images in [-1, 1]: what a model draws is never quite clean."""

    direction_weight: float = 1.0
    """Weight of telling instructions apart by the change, where telling captions apart has 1."""

    direction_scale: float = 10.0
    """Factor of the directions' cosines in the softmax."""

    def __post_init__(self) -> None:
        if not 2 <= self.batch_size <= self.num_scenes:
            raise ConfigError(
                f"batch_size is {self.batch_size}, expected 2 to num_scenes ({self.num_scenes})"
            )


class Edit(NamedTuple):
    """An edit of a scene as images and words."""

    source_HW3: np.ndarray
    target_HW3: np.ndarray
    """uint8 RGB, before and after."""

    before: str
    after: str
    """Everything in the scene in words, without its place."""

    region: str
    """What the instruction is about: `EditSample.region_caption`."""

    instruction: str


def edits(split: scenes.Split, indices: Iterable[int], seed: int = 0) -> list[Edit]:
    """The edits of some scenes of the standard level."""
    found = []
    for index in indices:
        problem = generator.compose(seed, index, split=split)
        before, after = problem.edit.before, problem.edit.after
        source_HW3 = render(before, SIZE)
        target_HW3 = render_change(source_HW3, before, after)
        words = (caption(before), caption(after), problem.edit.caption, problem.instruction)
        found.append(Edit(source_HW3, target_HW3, *words))
    return found


def caption(scene: Scene) -> str:
    """Everything that stands in the scene, row by row."""
    ordered = sorted(scene.entities, key=lambda e: min((row, column) for column, row in e.cells))
    return " ".join(entity.describe() for entity in ordered)


class Embedded(NamedTuple):
    """B edits as unit vectors (B, D)."""

    source_BD: Tensor
    target_BD: Tensor
    before_BD: Tensor
    after_BD: Tensor
    change_BD: Tensor
    """Direction from the source's to the target's."""

    words_BD: Tensor
    """Direction from the region's caption to the instruction's."""


def embed(clip: ClipModel, batch: Sequence[Edit], noise: Tensor | float = 0.0) -> Embedded:
    """Embed images and words of edits.

    Args:
        clip: the network.
        batch: B edits.
        noise: what is added to their 2 B images, sources first, in [-1, 1].
    """
    images = to_tensor([e.source_HW3 for e in batch] + [e.target_HW3 for e in batch]) + noise
    source_BD, target_BD = clip.images(images).chunk(2)
    fields = ("before", "after", "region", "instruction")
    texts = [getattr(edit, field) for field in fields for edit in batch]
    before_BD, after_BD, region_BD, instruction_BD = clip.texts(texts).chunk(4)
    change_BD = F.normalize(target_BD - source_BD, dim=1)
    words_BD = F.normalize(instruction_BD - region_BD, dim=1)
    return Embedded(source_BD, target_BD, before_BD, after_BD, change_BD, words_BD)


def contrast(one_BD: Tensor, other_BD: Tensor, scale: Tensor | float) -> Tensor:
    """CLIP's loss (arXiv 2103.00020, figure 3): cross entropy of finding each row's partner among B, mean
    over the rows and over both ways of looking.

    Args:
        one_BD, other_BD: unit vectors; rows of one number are partners.
        scale: factor of the cosines.
    """
    logit_BB = scale * one_BD @ other_BD.T
    row_B = torch.arange(len(one_BD))
    return (F.cross_entropy(logit_BB, row_B) + F.cross_entropy(logit_BB.T, row_B)) / 2


def train(config: ClipScenesConfig) -> ClipModel:
    """A trained network, its weights rounded to fp16. The same configuration gives the same weights on one
    thread of one machine."""
    torch.manual_seed(config.seed)
    clip = scenes_clip(NETWORK)
    data = edits("train", range(config.num_scenes), config.seed)
    order = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(
        clip.network.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    clip.network.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1, (step + 1) / 50) * (1 - step / config.steps)
        batch = [data[i] for i in order.choice(len(data), config.batch_size, replace=False)]
        noise = config.noise * torch.randn(2 * len(batch), 3, SIZE, SIZE)
        found = embed(clip, batch, noise)
        scale = clip.network.logit_scale.exp().clamp(max=100)
        captions = contrast(found.source_BD, found.before_BD, scale)
        captions = (captions + contrast(found.target_BD, found.after_BD, scale)) / 2
        directions = contrast(found.change_BD, found.words_BD, config.direction_scale)
        optimizer.zero_grad()
        (captions + config.direction_weight * directions).backward()
        torch.nn.utils.clip_grad_norm_(clip.network.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(
                f"step {step}: captions {captions.item():.3f}, directions {directions.item():.3f}", flush=True
            )
    clip.network.half().float().eval()
    return clip


@torch.no_grad()
def evaluate(clip: ClipModel, data: Sequence[Edit]) -> dict[str, float]:
    """Shares of images whose caption, and of changes whose instruction, is the nearest of 64, and what chance
    would give; means over whole lots of 64."""
    hits = []
    for first in range(0, len(data) - CHOICES + 1, CHOICES):
        found = embed(clip, data[first : first + CHOICES])
        pairs = ((found.source_BD, found.before_BD), (found.change_BD, found.words_BD))
        hits.append([hit_share(one_BD, other_BD) for one_BD, other_BD in pairs])
    captions, directions = np.mean(hits, axis=0)
    return {"caption": float(captions), "direction": float(directions), "chance": 1 / CHOICES}


def hit_share(one_BD: Tensor, other_BD: Tensor) -> float:
    """Share of rows whose partner is the nearest of all rows."""
    nearest_B = (one_BD @ other_BD.T).argmax(dim=1)
    return (nearest_B == torch.arange(len(one_BD))).float().mean().item()


def main(overrides: Sequence[str]) -> None:
    """Train, evaluate on val scenes, and save."""
    config = parse(ClipScenesConfig, overrides)
    torch.set_num_threads(1)
    began = time.process_time()
    clip = train(config)
    seconds = round(time.process_time() - began)
    val = evaluate(clip, edits("val", range(config.num_val)))
    config.out.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in clip.network.state_dict().items()
    }
    save_file(state, config.out / WEIGHTS_FILE)
    (config.out / CONFIG_FILE).write_text(json.dumps(NETWORK, indent=1) + "\n")
    settings = {name: value for name, value in to_dict(config).items() if name != "out"}
    record = {"config": settings, "cpu_seconds": seconds, "val": val, "torch": torch.__version__}
    (config.out / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"found among {CHOICES} on val scenes: {val}; {seconds} CPU seconds; saved in {config.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
