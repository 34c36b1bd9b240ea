"""Edits of Scenes with exact scores: what the judge learns from.

All images are as a judge gets them in training: before is the codec's round trip of the source, after has
been through the codec as well, whoever made it.

Legend: N edits, S scenes, M measures, H W pixels. Images are uint8 RGB.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.learned_judge.config import DataConfig
from experiments.learned_judge.edits import Problem, draft, flawed, problem
from gvcot.chain import Chain
from gvcot.data.encoded import fingerprint
from gvcot.data.images import to_tensor, to_uint8
from gvcot.model.codec import Codec
from gvcot.model.pretrained import Pretrained, find_model, load_pretrained
from gvcot.sampler import condition_of, draw, ode_denoiser
from gvcot.seeds import derive, noise_BND
from gvcot.types import ChainConfig, EditSample
from rewards.judge.measure import Measures, measure, reference

CHUNK = 64
"""Scenes that are made at a time."""

SHARD = 512
"""Scenes of a stored file."""

DRAWN = "drawn"
"""Kind of the edits that a model drew."""

NUM_STEPS, SHIFT = 8, 3.0
"""ODE steps and timestep shift with which it draws, as in the tiny recipe's rollouts."""

NUM_DIGITS = 10

TEXTS = "texts"
"""Where a stored file has what is no array."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """N edits of S scenes."""

    sample_ids: list[str]
    """Of each scene."""

    instructions: list[str]
    """Of each scene."""

    pointers: list[list[tuple[str, int, int]]]
    """Of each scene: expressions that mean a thing of it, and where that is, (x, y) in 32nds of the image."""

    before_SHW3: np.ndarray
    """The sources as they come out of the codec."""

    mask_SHW: np.ndarray
    """bool; what the instructions mean."""

    scene_N: np.ndarray
    """int64; whose edit it is."""

    after_NHW3: np.ndarray
    """The edits as they come out of the codec, or a flaw after it."""

    kind_N: np.ndarray
    """What they are, such as "blend", "target+noise" or "drawn"."""

    measures_NM: np.ndarray
    """float32, 0 to 1: place, accuracy, preservation and quality (`rewards.judge.measure.Measures`)."""

    @property
    def scores_N2(self) -> np.ndarray:
        """float32, 0 to 10: SC and PQ of each edit."""
        found = Measures(*self.measures_NM.T)
        return np.stack([found.sc, found.pq], axis=1)

    def __len__(self) -> int:
        return len(self.scene_N)


def load_pairs(config: DataConfig, progress: Callable[[int, int], None] | None = None) -> Pairs:
    """The edits of a configuration; the same one gives the same edits. What the cache has isn't made again.

    Args:
        config: what is wanted.
        progress: called with (scenes ready, scenes wanted).

    Raises:
        CheckpointError: there is no such policy.
    """
    policy = load_pretrained(find_model(config.policy))
    folder = Path(config.cache_dir) / f"edits-{_digest(config, policy)}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, config.num_scenes, SHARD):
        numbers = range(start, min(start + SHARD, config.num_scenes))
        first = config.first_scene + start
        path = folder / f"{first:08d}-{first + len(numbers):08d}.npz"
        if not path.is_file():
            chunks = [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]
            _write(path, joined([_make(config, policy, chunk) for chunk in chunks]))
        parts.append(_read(path))
        if progress is not None:
            progress(numbers.stop, config.num_scenes)
    return joined(parts)


def _digest(config: DataConfig, policy: Pretrained) -> str:
    what = {"split": config.split, "seed": config.seed, "edits": config.edits_per_scene}
    return fingerprint(policy.codec, **what, drawn=config.policy if config.drawn else "").removeprefix(
        "scenes-"
    )


def _write(path: Path, pairs: Pairs) -> None:
    columns = {field.name: getattr(pairs, field.name) for field in fields(Pairs)}
    arrays: dict[str, Any] = {n: value for n, value in columns.items() if isinstance(value, np.ndarray)}
    texts = json.dumps({name: value for name, value in columns.items() if name not in arrays})
    partial = path.with_suffix(f".{os.getpid()}.npz")  # never half a file under the name that is looked for
    np.savez(partial, **{TEXTS: np.array(texts)}, **arrays)
    partial.replace(path)


def _read(path: Path) -> Pairs:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if name != TEXTS}
        return Pairs(**json.loads(str(stored[TEXTS])), **arrays)


def joined(parts: Sequence[Pairs]) -> Pairs:
    """The scenes and edits of all parts, one after the other."""
    firsts = np.cumsum([0, *(len(part.instructions) for part in parts[:-1])])
    columns: dict[str, Any] = {}
    for field in fields(Pairs):
        values = [getattr(part, field.name) for part in parts]
        if field.name == "scene_N":
            values = [value + first for value, first in zip(values, firsts, strict=True)]
        is_array = isinstance(values[0], np.ndarray)
        columns[field.name] = np.concatenate(values) if is_array else [x for value in values for x in value]
    return Pairs(**columns)


def digits(score_N: np.ndarray) -> np.ndarray:
    """The digit nearest to each score (0 to 10); 9 stands for 10. int64 (N,)."""
    return np.rint(0.9 * score_N).astype(np.int64)


def balance(pairs: Pairs) -> np.ndarray:
    """How often to show each edit, (N,), summing to 1: each digit counts the same, of SC and of PQ.

    An edit counts once for its SC and once for its PQ, so digits that come with a frequent one of the other
    aspect end up a little more frequent than others.
    """
    share_N = np.zeros(len(pairs))
    for score_N in pairs.scores_N2.T:
        digit_N = digits(score_N)
        share_N += 1 / np.bincount(digit_N, minlength=NUM_DIGITS)[digit_N]
    return share_N / share_N.sum()


@torch.no_grad()
def round_trip(codec: Codec, images_B3HW: Tensor) -> Tensor:
    """Images in [-1, 1] as they come out of the codec."""
    return torch.cat([codec.decode(codec.encode(part)) for part in images_B3HW.split(CHUNK)])


def drawn_edits(policy: Pretrained, samples: Sequence[EditSample], seed: int) -> np.ndarray:
    """Edits that a model draws (the whole chain), uint8 (B, H, W, 3)."""
    config = policy.model.config
    chain = Chain(ChainConfig(), policy.tokenizer, has_vit=config.vit is not None)
    condition = condition_of(samples, config, policy.codec, chain)

    def noise(phase: str, shape: tuple[int, int, int]) -> Tensor:
        return noise_BND([derive(seed, sample.sample_id, phase) for sample in samples], shape[1:])

    denoise = ode_denoiser(NUM_STEPS, SHIFT)
    drawn = draw(policy.model, policy.codec, chain, condition, denoise=denoise, noise=noise)
    return to_uint8(drawn.images["x_edit"])


def _make(config: DataConfig, policy: Pretrained, numbers: range) -> Pairs:
    known = [problem(config.seed, config.first_scene + number, config.split) for number in numbers]
    samples = [one.sample for one in known]
    made = list(_by_hand(config, policy.codec, known))
    if config.drawn:
        images_BHW3 = drawn_edits(policy, samples, config.seed)
        made += [(row, DRAWN, image_HW3) for row, image_HW3 in enumerate(images_BHW3)]
    references = [reference(sample) for sample in samples]
    measures = [measure(image_HW3, references[row]) for row, _, image_HW3 in made]
    sources_S3HW = to_tensor([sample.source_HW3 for sample in samples])
    return Pairs(
        sample_ids=[sample.sample_id for sample in samples],
        instructions=[sample.instruction for sample in samples],
        pointers=[[(text, *_place(words)) for text, words in sample.pointers] for sample in samples],
        before_SHW3=to_uint8(round_trip(policy.codec, sources_S3HW)),
        mask_SHW=np.stack([sample.mask_HW for sample in samples]),
        scene_N=np.array([row for row, _, _ in made]),
        after_NHW3=np.stack([image_HW3 for _, _, image_HW3 in made]),
        kind_N=np.array([kind for _, kind, _ in made]),
        measures_NM=np.array(measures, np.float32),
    )


def _by_hand(
    config: DataConfig, codec: Codec, known: Sequence[Problem]
) -> Iterator[tuple[int, str, np.ndarray]]:
    """(row of the scene, kind, uint8 image) of each edit."""
    rngs = [np.random.default_rng(derive(config.seed, "edits", one.sample.sample_id)) for one in known]
    rows = [row for row in range(len(known)) for _ in range(config.edits_per_scene)]
    drafts = [draft(known[row], rngs[row]) for row in rows]
    images_B3HW = round_trip(codec, _tensor([one.image_HW3 for one in drafts]))
    for row, one, image_3HW in zip(rows, drafts, images_B3HW, strict=True):
        image_HW3 = image_3HW.permute(1, 2, 0).numpy()
        if one.late_flaw is not None:
            image_HW3 = flawed(one.late_flaw, image_HW3, known[row], rngs[row])
        yield row, one.kind, to_uint8(_tensor([image_HW3]))[0]


def _tensor(images_HW3: Sequence[np.ndarray]) -> Tensor:
    """Float images (H, W, 3) -> (B, 3, H, W)."""
    return torch.from_numpy(np.stack(images_HW3)).permute(0, 3, 1, 2)


def _place(words: str) -> tuple[int, int]:
    """ "<x12> <y3>" -> (12, 3)."""
    x, y = re.findall(r"\d+", words)
    return int(x), int(y)
