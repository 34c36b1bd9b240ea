"""Scenes encoded once for training: latents, ViT pixels and texts, kept on disk by fingerprint.

Generating and encoding a scene costs about as much as training on it, so a training set of fixed size
is encoded shard by shard (a stopped build continues) and then read into memory.

Legend: M samples, B rows, N latent tokens, D values per token, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gvcot import overlay, prompts
from gvcot.data import scenes
from gvcot.data.images import to_tensor, to_uint8
from gvcot.model import flow
from gvcot.model.codec import TinyAE
from gvcot.model.config import UnifiedConfig

SHARD = 1_000
"""Scenes per file of the cache."""


@dataclass(kw_only=True, slots=True)
class EncodedScenes:
    """M training scenes, ready to be packed."""

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

    boxes: list[str]
    """The region's boxes in coordinate words."""

    grid: tuple[int, int]
    """Latent tokens as (rows, columns)."""

    def __len__(self) -> int:
        return len(self.instructions)


def load_encoded(
    codec: TinyAE,
    config: UnifiedConfig,
    *,
    cache_dir: Path,
    seed: int,
    num_samples: int,
    size: int,
    entities: tuple[int, int] = scenes.CROWDED,
    shard: int = SHARD,
    progress: Callable[[int, int], None] | None = None,
) -> EncodedScenes:
    """Encode the first `num_samples` scenes of the training split, or read them from the cache.

    Args:
        codec: encodes; its weights are part of the cache's name.
        config: gives the latent patch.
        cache_dir: folder of all caches.
        seed: world seed.
        num_samples: M; the last shard may be partly used.
        size: pixels per side.
        entities: fewest and most things in a scene.
        shard: scenes per file.
        progress: called with (scenes ready, scenes wanted) after each shard.
    """
    crowd = {} if entities == scenes.CROWDED else {"fewest": entities[0], "most": entities[1]}
    folder = cache_dir / fingerprint(
        codec, seed=seed, size=size, patch=config.latent_patch, shard=shard, **crowd
    )
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for first in range(0, num_samples, shard):
        path = folder / f"{first:08d}.safetensors"
        if not path.exists():
            write_shard(path, *encode_shard(codec, config, seed, range(first, first + shard), size, entities))
        shards.append((load_file(path), json.loads(path.with_suffix(".json").read_text())))
        if progress is not None:
            progress(min(first + shard, num_samples), num_samples)
    tensors = {k: torch.cat([t[k] for t, _ in shards])[:num_samples] for k in shards[0][0]}
    texts = {k: [x for _, t in shards for x in t[k]][:num_samples] for k in shards[0][1]}
    fields: dict[str, Any] = {**tensors, **texts}
    return EncodedScenes(**fields, grid=config.latent_grid(size, size))


def fingerprint(codec: TinyAE, **parts: int) -> str:
    """A name that changes with the codec's weights, the world's version and the given parts."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(codec.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    digest.update(repr((scenes.VERSION, sorted(parts.items()))).encode())
    return f"scenes-{digest.hexdigest()}"


@torch.no_grad()
def encode_shard(
    codec: TinyAE,
    config: UnifiedConfig,
    seed: int,
    indices: range,
    size: int,
    entities: tuple[int, int] = scenes.CROWDED,
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """(tensors, texts) of some training scenes, under the field names of `EncodedScenes`."""
    samples = [scenes.generate(seed, i, split="train", size=size, entities=entities) for i in indices]
    source = to_tensor([s.source_HW3 for s in samples])
    target = to_tensor([s.target_HW3 for s in samples if s.target_HW3 is not None])
    mask_MHW = torch.from_numpy(np.stack([s.mask_HW for s in samples]))
    painted = overlay.paint(source, mask_MHW, [s.paint for s in samples])
    latents = {
        name: torch.cat([codec.encode(part) for part in images.split(64)])
        for name, images in (("source", source), ("x_cot", painted), ("x_edit", target))
    }
    round_trip = torch.cat([codec.decode(part) for part in latents["x_cot"].split(64)])
    tensors = {f"{k}_MND": flow.patchify(v, config.latent_patch).half() for k, v in latents.items()}
    for name, images in (("source", source), ("x_cot", round_trip)):
        tensors[f"{name}_M3HW"] = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).contiguous()
    texts = {
        "instructions": [s.instruction for s in samples],
        "captions": [s.region_caption for s in samples],
        "boxes": [" ".join(prompts.box_words(r.box, (size, size)) for r in s.regions) for s in samples],
    }
    return tensors, texts


def write_shard(path: Path, tensors: dict[str, Tensor], texts: dict[str, list[str]]) -> None:
    """Write aside, then rename: a shard that exists is complete."""
    path.with_suffix(".json").write_text(json.dumps(texts))
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, aside)
    os.replace(aside, path)


def pixels(images_u8: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) -> float32 in [-1, 1]."""
    return images_u8.float().div_(127.5).sub_(1.0)
