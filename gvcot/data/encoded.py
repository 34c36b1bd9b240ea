"""Samples encoded once for training: latents, ViT pixels and texts, kept on disk by fingerprint.

Generating and encoding a scene costs about as much as training on it, so a training set of fixed size
is encoded shard by shard (a stopped build continues) and then read into memory. `stream.py` does without
the disk, for sets that have no end.

Legend: M samples, B rows, N latent tokens, D values per token, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gvcot import distributed, overlay, prompts
from gvcot.data import scenes
from gvcot.data.images import to_tensor, to_uint8
from gvcot.data.pairs.dataset import Bad
from gvcot.data.scenes import DEFAULT, WorldConfig
from gvcot.data.source import SceneSource, Source
from gvcot.errors import ResourceError
from gvcot.model import flow
from gvcot.model.codec import Autoencoder, decode_in_parts, encode_in_parts
from gvcot.model.config import UnifiedConfig
from gvcot.types import EditSample

SHARD = 1_000
"""Scenes per file of the cache."""

CHUNK = 32
"""Scenes that are rendered and encoded at a time: few enough to stay in the processor's caches."""

TEXT_BYTES = 400
"""About what a scene's texts take on disk."""


@dataclass(kw_only=True, slots=True)
class EncodedScenes:
    """M training samples, of Scenes or of a dataset, ready to be packed."""

    source_M3HW: Tensor
    """uint8 source pixels (for the ViT)."""

    x_cot_M3HW: Tensor
    """uint8 codec round trip of the true reasoning image: what a sampler would show to the ViT."""

    source_MND: Tensor
    """fp16 latent tokens of the source."""

    x_cot_MND: Tensor
    """fp16 latent tokens of the true reasoning image."""

    x_edit_MND: Tensor
    """fp16 latent tokens of the target."""

    instructions: list[str]
    captions: list[str]
    """The region in words."""

    places: list[str]
    """Where the region is and what, in words."""

    inventories: list[str]
    """Everything in the source, with its place."""

    pointers: list[list[list[str]]]
    """Referring expressions, each with the place of what it means."""

    grid: tuple[int, int]
    """Latent tokens as (rows, columns)."""

    def __len__(self) -> int:
        return len(self.instructions)

    def rows(self, rows: Sequence[int]) -> EncodedScenes:
        """Some of the scenes, in this order."""
        index = torch.tensor(rows)
        taken: dict[str, Any] = {}
        for name, value in columns(self).items():
            taken[name] = value[index] if isinstance(value, Tensor) else [value[row] for row in rows]
        return EncodedScenes(**taken, grid=self.grid)


def columns(data: EncodedScenes) -> dict[str, Tensor | list[Any]]:
    """All that has one entry per scene, by field name."""
    return {f.name: getattr(data, f.name) for f in fields(data) if f.name != "grid"}


def concat(parts: Sequence[EncodedScenes]) -> EncodedScenes:
    """The scenes of all parts, one after the other."""
    joined: dict[str, Any] = {}
    for name, first in columns(parts[0]).items():
        values = [getattr(part, name) for part in parts]
        joined[name] = torch.cat(values) if isinstance(first, Tensor) else [x for v in values for x in v]
    return EncodedScenes(**joined, grid=parts[0].grid)


def load_encoded(
    codec: Autoencoder,
    config: UnifiedConfig,
    source: Source,
    *,
    cache_dir: Path,
    num_samples: int,
    size: int,
    shard: int = SHARD,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[list[Bad]], None] | None = None,
) -> EncodedScenes:
    """Encode the first `num_samples` samples of a source, or read them from the cache; without the bad ones.

    Workers that train together share the encoding. *Collective.*

    Args:
        codec: encodes; its weights are part of the cache's name.
        config: gives the latent patch.
        source: of the training samples.
        cache_dir: folder of all caches.
        num_samples: M, bad ones included; the last shard may be partly used.
        size: pixels per side.
        shard: samples per file.
        progress: called with (samples ready, samples wanted) after each of this worker's shards.
        report: called with the bad samples, whether they were met now or earlier.

    Raises:
        ResourceError: the disk has no room for them.
        DataError: too many samples are bad.
    """
    endless = source.num_samples is None
    num_samples = num_samples if source.num_samples is None else min(num_samples, source.num_samples)
    folder = cache_dir / fingerprint(
        codec,
        **source.identity(num_samples),
        patch=config.latent_patch,
        shard=shard,
        fields=" ".join(f.name for f in fields(EncodedScenes)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    missing = -(-num_samples // shard) - len(list(folder.glob("*.safetensors")))
    check_room(folder, missing * shard, bytes_per_scene(config, size))
    paths = {first: folder / f"{first:08d}.safetensors" for first in range(0, num_samples, shard)}
    for first, path in list(paths.items())[distributed.rank() :: distributed.world_size()]:
        if not path.exists():
            indices = range(first, first + shard if endless else min(first + shard, num_samples))
            bad: list[Bad] = []
            tensors, texts = encode_chunks(codec, config.latent_patch, chunks(source, indices, bad), size)
            write_shard(path, tensors, texts | ({"bad": bad} if bad else {}))
        if progress is not None:
            progress(min(first + shard, num_samples), num_samples)
    distributed.barrier()
    shards = [(load_file(p), json.loads(p.with_suffix(".json").read_text())) for p in paths.values()]
    if report is not None:
        report([Bad(*entry) for _, texts in shards for entry in texts.get("bad", [])])
    shards = [(tensors, texts) for tensors, texts in shards if tensors]  # none where all its samples are bad
    names = [f.name for f in fields(EncodedScenes) if f.name != "grid"]
    parts: dict[str, Any] = {k: torch.cat([t[k] for t, _ in shards])[:num_samples] for k in shards[0][0]}
    parts |= {k: [x for _, t in shards for x in t[k]][:num_samples] for k in names if k not in parts}
    return EncodedScenes(**parts, grid=config.latent_grid(size, size))


def chunks(source: Source, indices: Sequence[int], bad: list[Bad]) -> Iterator[Sequence[EditSample]]:
    """The good samples, as many at a time as are encoded together; the others are added to `bad`."""
    for start in range(0, len(indices), CHUNK):
        samples, others = source.take(indices[start : start + CHUNK])
        bad.extend(others)
        if samples:
            yield samples


def bytes_per_scene(config: UnifiedConfig, size: int) -> int:
    """What one encoded scene takes, in memory and on disk."""
    rows, columns = config.latent_grid(size, size)
    return 2 * 3 * size * size + 3 * rows * columns * config.latent_dim * 2 + TEXT_BYTES


def check_room(folder: Path, num_scenes: int, each: int) -> None:
    """Raises ResourceError where `num_scenes` of `each` bytes don't fit on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if num_scenes * each > free:
        raise ResourceError(
            f"encoding {num_scenes:,} more scenes takes {num_scenes * each / 1e9:.1f} GB in {folder.parent}, "
            f"whose disk has {free / 1e9:.1f} GB left: lower data.num_samples, set data.cache_dir to another "
            "disk, delete caches of earlier runs, or set data.num_samples=null, which keeps nothing on disk"
        )


def fingerprint(codec: Autoencoder, **parts: int | str) -> str:
    """A name that changes with the codec's weights, the world's version and the given parts."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(codec.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy(force=True).tobytes())
    digest.update(repr((scenes.VERSION, sorted(parts.items()))).encode())
    return f"{'pairs' if 'pairs' in parts else 'scenes'}-{digest.hexdigest()}"


def encode_shard(
    codec: Autoencoder,
    config: UnifiedConfig,
    seed: int,
    indices: range,
    size: int,
    world: WorldConfig = DEFAULT,
) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
    """(tensors, texts) of some training scenes, under the field names of `EncodedScenes`."""
    source = SceneSource(seed=seed, size=size, world=world)
    return encode_chunks(codec, config.latent_patch, chunks(source, indices, []), size)


def encode_chunks(
    codec: Autoencoder, patch: int, parts: Iterable[Sequence[EditSample]], size: int
) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
    """(tensors, texts) of samples, under the field names of `EncodedScenes`; empty where there are none."""
    tensors: dict[str, list[Tensor]] = {}
    texts: dict[str, list[Any]] = {}
    for samples in parts:
        for name, part in encode_images(codec, patch, samples).items():
            tensors.setdefault(name, []).append(part)
        for name, words in texts_of(samples, size).items():
            texts.setdefault(name, []).extend(words)
    return {name: torch.cat(found) for name, found in tensors.items()}, texts


@torch.no_grad()
def encode_images(codec: Autoencoder, patch: int, samples: Sequence[EditSample]) -> dict[str, Tensor]:
    """The tensors of `EncodedScenes` for one chunk of samples, each of which has its target."""
    source = to_tensor([s.source_HW3 for s in samples])
    target = to_tensor([s.target_HW3 for s in samples if s.target_HW3 is not None])
    mask_MHW = torch.from_numpy(np.stack([s.mask_HW for s in samples]))
    painted = overlay.paint(source, mask_MHW, [s.paint for s in samples])
    latents = {
        name: encode_in_parts(codec, images)
        for name, images in (("source", source), ("x_cot", painted), ("x_edit", target))
    }
    tensors = {f"{k}_MND": flow.patchify(v, patch).half() for k, v in latents.items()}
    shown = {
        "source": np.stack([s.source_HW3 for s in samples]),
        "x_cot": to_uint8(decode_in_parts(codec, latents["x_cot"])),
    }
    for name, images in shown.items():
        tensors[f"{name}_M3HW"] = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return tensors


def texts_of(samples: Sequence[EditSample], size: int) -> dict[str, list[Any]]:
    """The texts of `EncodedScenes`."""
    return {
        "instructions": [s.instruction for s in samples],
        "captions": [s.region_caption for s in samples],
        "inventories": [s.scene_caption for s in samples],
        "pointers": [[list(pair) for pair in s.pointers] for s in samples],
        "places": [
            prompts.place_words([r.box for r in s.regions], s.region_caption, (size, size)) for s in samples
        ],
    }


def write_shard(path: Path, tensors: dict[str, Tensor], texts: dict[str, list[Any]]) -> None:
    """Write aside, then rename: a shard that exists is complete."""
    path.with_suffix(".json").write_text(json.dumps(texts))
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, aside)
    os.replace(aside, path)


def pixels(images_u8: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) -> float32 in [-1, 1]."""
    return images_u8.float().div_(127.5).sub_(1.0)
