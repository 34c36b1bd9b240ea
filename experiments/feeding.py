"""What scenes cost beside the training step that uses them: `gvcot data speed`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table

from gvcot.config import load
from gvcot.data import scenes
from gvcot.data.encoded import CHUNK, SHARD, EncodedScenes, concat, encode_images, texts_of
from gvcot.data.stream import Epochs
from gvcot.model.bagel_json import read_bagel_dir
from gvcot.model.checkpoint import save_codec
from gvcot.model.codec import TinyAE
from gvcot.model.pretrained import WARM_START, find_model
from sft.config import SFTConfig
from sft.stages import BatchBuilder
from sft.train import new_state, starting_point, training_step

NUM_SCENES = 8 * CHUNK
"""Scenes per repeat."""

NUM_STEPS = 4
"""Training steps per repeat."""

SIZES: tuple[int | None, ...] = (2_000, 8_000, 32_000, None)
"""Training sets that are compared, beside the recipe's own; None: unlimited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """CPU milliseconds of one repeat."""

    generate: float
    """Per scene."""

    encode: float
    """Per scene: three images encoded, one decoded, and what lies between."""

    step: float
    """Per row of a training step, with building its batch."""

    def share(self, uses: float) -> float:
        """Generating and encoding as a share of training, where each scene is trained on `uses` times."""
        return (self.generate + self.encode) / uses / self.step


def feed_speed(
    recipe: str | Path, overrides: Sequence[str], level: str | None, repeats: int
) -> tuple[Table, Table]:
    """Measure a stage's feeding on one core; (times, shares) as tables.

    Args:
        recipe, overrides: a supervised stage; it starts from random weights.
        level: of the scenes; None: the recipe's.
        repeats: how often all is measured.
    """
    settings = [*overrides, *([f"data.world.level={level}"] if level else [])]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = stage(load(SFTConfig, recipe, settings), Path(folder))
        speeds = list(measure(config, repeats))
    torch.set_num_threads(threads)
    return times(config, speeds), shares(config, speeds)


def stage(config: SFTConfig, folder: Path) -> SFTConfig:
    """The stage from random weights, at a size that shows its scenes; `folder` gets a random codec for it.

    The codec is as wide as that of the stage's start, for which the shipped model stands.
    """
    shipped = config.init is not None
    width = read_bagel_dir(find_model(WARM_START)).codec.width if shipped else config.model.codec_width
    save_codec(TinyAE(width=width), folder)
    size = max(config.model.image_size, config.data.world.resolve().size)
    model = replace(config.model, image_size=size, codec_width=width)
    return replace(config, init=None, codec=str(folder), model=model)


def measure(config: SFTConfig, repeats: int) -> Iterator[Speed]:
    """All three times, side by side in each repeat, so that a busy machine changes their ratios little."""
    start = starting_point(config)
    model, codec, tokenizer = start.model, start.codec, start.tokenizer
    state = new_state(config, model)
    data, size = config.data, config.model.image_size
    for repeat in range(repeats + 1):
        generating = encoding = 0.0
        parts = []
        for first in range(repeat * NUM_SCENES, (repeat + 1) * NUM_SCENES, CHUNK):
            indices = range(first, first + CHUNK)
            began = time.process_time()
            samples = scenes.samples("train", indices, seed=data.seed, size=size, world=data.world)
            between = time.process_time()
            tensors = encode_images(codec, model.config.latent_patch, samples)
            texts = texts_of(samples, size)
            generating += between - began
            encoding += time.process_time() - between
            fields: dict[str, Any] = {**tensors, **texts}
            parts.append(EncodedScenes(**fields, grid=model.config.latent_grid(size, size)))
        feed = Epochs(concat(parts), config.batch_size, config.seed)
        builder = BatchBuilder(config, model.config, feed, tokenizer, codec)
        began = time.process_time()
        for _ in range(NUM_STEPS):
            training_step(config, builder, state)
        training = time.process_time() - began
        if repeat > 0:  # the first one only warms up
            yield Speed(
                generate=1e3 * generating / NUM_SCENES,
                encode=1e3 * encoding / NUM_SCENES,
                step=1e3 * training / (NUM_STEPS * config.batch_size),
            )


def uses(config: SFTConfig, num_samples: int | None) -> float:
    """How often the stage trains on each scene that is encoded for a training set of this size."""
    if num_samples is None:
        return config.data.reuse
    encoded = -(-num_samples // SHARD) * SHARD  # whole shards
    return config.steps * config.batch_size / encoded


def times(config: SFTConfig, speeds: Sequence[Speed]) -> Table:
    """CPU milliseconds of each part."""
    world, model = config.data.world, config.model
    place = f"{world.level}, {model.image_size} px, codec width {model.codec_width}"
    title = f"{config.name}, {place}: CPU ms, one thread"
    table = Table("", "median", "range", title=title, title_justify="left", min_width=len(title))
    rows = {
        "generate, per scene": [s.generate for s in speeds],
        "encode, per scene": [s.encode for s in speeds],
        "training step, per row": [s.step for s in speeds],
    }
    for name, values in rows.items():
        table.add_row(name, f"{median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}")
    return table


def shares(config: SFTConfig, speeds: Sequence[Speed]) -> Table:
    """Generating and encoding per row used, as a share of the training step, for each size of the set."""
    title = f"generate + encode as a share of the step ({config.steps} steps of {config.batch_size} rows)"
    table = Table(
        "scenes", "uses of each", "median", "range", title=title, title_justify="left", min_width=len(title)
    )
    own = config.data.num_samples
    for num_samples in [own, *(size for size in SIZES if size != own)]:
        often = uses(config, num_samples)
        values = [speed.share(often) for speed in speeds]
        name = "unlimited" if num_samples is None else f"{num_samples:,}"
        mark = " (recipe)" if num_samples == own else ""
        spread = f"{min(values):.1%} to {max(values):.1%}"
        table.add_row(name + mark, f"{often:.1f}", f"{median(values):.1%}", spread)
    return table
