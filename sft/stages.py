"""What each kind of supervised sample looks like as a sequence.

A kind is a chain (each of its images is a flow target, later phases see the *true* earlier images) or
one of understanding: "describe" (the painted region in words) and "locate" (a region's boxes in words).
Condition dropout as in BAGEL: text, VAE and ViT conditions of an image are left out independently.

Legend: B rows, N latent tokens, D values per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gvcot import prompts
from gvcot.chain import Chain, Drop
from gvcot.data.encoded import EncodedScenes, pixels
from gvcot.model import flow
from gvcot.model.config import UnifiedConfig
from gvcot.model.sequence import Segment
from gvcot.model.tokenizer import WordTokenizer
from gvcot.sampler import vit_pixels
from gvcot.types import ChainConfig, Condition
from sft.config import DESCRIBE, LOCATE, DropConfig, SFTConfig


@dataclass(kw_only=True, slots=True)
class Batch:
    """Sequences of one step and the targets of their noise segments."""

    samples: list[list[Segment]]
    target_MD: Tensor
    """fp32 velocities in pack order, M noisy tokens in all."""


class BatchBuilder:
    """Builds step k's batch as a pure function of (config.seed, k)."""

    def __init__(
        self, config: SFTConfig, model: UnifiedConfig, data: EncodedScenes, tokenizer: WordTokenizer
    ) -> None:
        """
        Raises:
            ConfigError: an unknown kind of sample in `config.mix`.
        """
        self._config, self._model, self._data, self._tokenizer = config, model, data, tokenizer
        self._kinds = sorted(config.mix)
        share = np.array([config.mix[k] for k in self._kinds])
        self._share = share / share.sum()
        self._chains = {
            kind: Chain(
                ChainConfig(name=kind, feedback=config.feedback), tokenizer, has_vit=model.vit is not None
            )
            for kind in self._kinds
            if kind not in (DESCRIBE, LOCATE)
        }

    def batch(self, step: int) -> Batch:
        """The rows, times, noise and dropout of one step."""
        config = self._config
        rng = np.random.default_rng([config.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        rows = epoch_rows(len(self._data), config.batch_size, config.seed, step)
        kinds = rng.choice(len(self._kinds), size=config.batch_size, p=self._share)
        samples: list[list[Segment]] = []
        targets: list[Tensor] = []
        for row, kind in zip(rows, kinds, strict=True):
            name = self._kinds[kind]
            if name == DESCRIBE:
                samples.append(self._describe(row))
            elif name == LOCATE:
                samples.append(self._locate(row, drop(config.drop, rng)))
            else:
                segments, row_targets = self._chain(self._chains[name], row, rng, generator)
                samples.append(segments)
                targets.extend(row_targets)
        empty = torch.zeros(0, self._model.latent_dim)
        return Batch(samples=samples, target_MD=torch.cat(targets) if targets else empty)

    def _chain(
        self, chain: Chain, row: int, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[list[Segment], list[Tensor]]:
        """One chain with its true images: noisy copies of each, then its clean feedback."""
        config, data = self._config, self._data
        segments = chain.prefix(self._condition(chain, row), 0, drop(config.drop, rng))
        targets = []
        truth = {"x_cot": data.x_cot_MND[row].float(), "x_edit": data.x_edit_MND[row].float()}
        for phase in chain.phases:
            x0_ND = truth[phase.name]
            for t in train_times(config.noise_copies, config.shift, config.antithetic, generator):
                eps_ND = torch.randn(x0_ND.shape, generator=generator)
                x_ND = flow.interpolate(x0_ND[None], eps_ND[None], t[None])[0]
                segments.append(Segment.noise(x_ND, t, data.grid))
                targets.append(flow.velocity_target(x0_ND, eps_ND))
            if phase is not chain.phases[-1]:
                shown = self._vit(data.x_cot_M3HW[row : row + 1])
                shown_3HW = None if shown is None else shown[0]
                segments += chain.feedback(x0_ND, shown_3HW, data.grid, drop(config.drop, rng))
        return segments, targets

    def _condition(self, chain: Chain, row: int) -> Condition:
        data = self._data
        return Condition(
            source_latent_BND=data.source_MND[row : row + 1].float(),
            source_vit_B3HW=self._vit(data.source_M3HW[row : row + 1]),
            instruction_BT=chain.encode_prompts([data.instructions[row]]),
            grid=data.grid,
        )

    def _describe(self, row: int) -> list[Segment]:
        """The marked image, a question, and the region in words (the answer carries the text loss)."""
        data = self._data
        question = torch.tensor(self._tokenizer.encode(prompts.describe_prompt()))
        answer = torch.tensor(self._tokenizer.encode(data.captions[row]))
        shown = self._vit(data.x_cot_M3HW[row : row + 1])
        image = (
            Segment.vae(data.x_cot_MND[row].float(), data.grid) if shown is None else Segment.vit(shown[0])
        )
        return [image, Segment.text(question), Segment.text(answer, loss=True)]

    def _locate(self, row: int, lost: Drop) -> list[Segment]:
        """The source, an instruction, and where its region is (the answer carries the text loss)."""
        data = self._data
        question = torch.tensor(self._tokenizer.encode(prompts.locate_prompt(data.instructions[row])))
        answer = torch.tensor(self._tokenizer.encode(data.boxes[row]))
        segments = [Segment.vae(data.source_MND[row].float(), data.grid, drop=lost.vae)]
        shown = self._vit(data.source_M3HW[row : row + 1])
        if shown is not None:
            segments.append(Segment.vit(shown[0], drop=lost.vit))
        return [*segments, Segment.text(question), Segment.text(answer, loss=True)]

    def _vit(self, images_u8: Tensor) -> Tensor | None:
        vit = self._model.vit
        return None if vit is None else vit_pixels(pixels(images_u8), vit)


def train_times(num: int, shift: float, antithetic: bool, generator: torch.Generator) -> Iterator[Tensor]:
    """Training times one by one, each logit-normal and shifted as BAGEL's.

    In antithetic pairs (z and -z before the logistic) every row is seen both where the region is still
    undecided and where details are drawn; each time's own distribution stays the same.
    """
    z = torch.zeros(1)
    for i in range(num):
        z = -z if antithetic and i % 2 else torch.randn(1, generator=generator)
        yield flow.shift_time(torch.sigmoid(z), shift)[0]


def drop(config: DropConfig, rng: np.random.Generator) -> Drop:
    """Draw which conditions one row loses."""
    text, vae, vit = rng.random(3) < (config.text, config.vae, config.vit)
    return Drop(text=bool(text), vae=bool(vae), vit=bool(vit))


def epoch_rows(num_samples: int, batch_size: int, seed: int, step: int) -> Sequence[int]:
    """Rows of step k when seeded permutations of the data are laid end to end."""
    first = step * batch_size
    rows = []
    for position in range(first, first + batch_size):
        epoch, offset = divmod(position, num_samples)
        rows.append(int(_permutation(num_samples, seed, epoch)[offset]))
    return rows


@lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
