"""What each kind of supervised sample looks like as a sequence.

A kind is a chain (each of its images is a flow target, later phases see the *true* earlier images) or
one of understanding: "describe" (the painted region in words), "inventory" (everything in the source),
"locate" (where the region of an instruction is, and what) and "point" (where things are that several
expressions mean).
Condition dropout as in BAGEL: text, VAE and ViT conditions of an image are left out independently.

Legend: B rows, N latent tokens, D values per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gvcot import prompts
from gvcot.chain import Chain, Drop
from gvcot.data.encoded import EncodedScenes, pixels
from gvcot.data.stream import Feed
from gvcot.errors import ConfigError
from gvcot.model import flow
from gvcot.model.codec import Codec
from gvcot.model.config import UnifiedConfig
from gvcot.model.sequence import Segment
from gvcot.model.tokenizer import Tokenizer
from gvcot.sampler import vit_pixels
from gvcot.types import ChainConfig, Condition
from sft.config import DESCRIBE, INVENTORY, LOCATE, POINT, DropConfig, SFTConfig


@dataclass(kw_only=True, slots=True)
class Batch:
    """Sequences of one step and the targets of their noise segments."""

    samples: list[list[Segment]]
    target_MD: Tensor
    """fp32 velocities in pack order, M noisy tokens in all."""

    weight_M: Tensor
    """fp32 weight of each token in the loss, after the image it belongs to."""


class BatchBuilder:
    """Builds each row of a step as a pure function of (config.seed, step, row)."""

    def __init__(
        self,
        config: SFTConfig,
        model: UnifiedConfig,
        feed: Feed,
        tokenizer: Tokenizer,
        codec: Codec | None = None,
    ) -> None:
        """
        Args:
            config: mix, noise levels and dropout.
            model: geometry of latents and ViT.
            feed: the scenes of each step.
            tokenizer: of prompts and answers.
            codec: decodes the true images that a chain feeds back; stored pixels do for painted ones.

        Raises:
            ConfigError: an unknown kind of sample in `config.mix`.
        """
        self._config, self._model, self._feed, self._tokenizer = config, model, feed, tokenizer
        self._codec = codec
        self._kinds = sorted(config.mix)
        share = np.array([config.mix[k] for k in self._kinds])
        self._share = share / share.sum()
        self._chains = {
            kind: Chain(
                ChainConfig(name=kind, feedback=config.feedback), tokenizer, has_vit=model.vit is not None
            )
            for kind in self._kinds
            if kind not in (DESCRIBE, INVENTORY, LOCATE, POINT)
        }

    def batch(self, step: int, rows: Iterable[int] | None = None) -> Batch:
        """The rows, times, noise and dropout of one step; of some rows only, where workers share it."""
        config = self._config
        data = self._feed.batch(step)
        samples: list[list[Segment]] = []
        targets: list[Tensor] = []
        weights: list[Tensor] = []
        for row in range(config.batch_size) if rows is None else rows:
            rng = np.random.default_rng([config.seed, step, row])
            name = self._kinds[rng.choice(len(self._kinds), p=self._share)]
            if name == DESCRIBE:
                samples.append(self._describe(data, row))
            elif name == INVENTORY:
                samples.append(self._inventory(data, row, drop(config.drop, rng)))
            elif name == LOCATE:
                samples.append(self._locate(data, row, drop(config.drop, rng)))
            elif name == POINT:
                samples.append(self._point(data, row, drop(config.drop, rng)))
            else:
                segments, row_targets, row_weights = self._chain(self._chains[name], data, row, rng)
                samples.append(segments)
                targets.extend(row_targets)
                weights.extend(row_weights)
        empty = torch.zeros(0, self._model.latent_dim)
        return Batch(
            samples=samples,
            target_MD=torch.cat(targets) if targets else empty,
            weight_M=torch.cat(weights) if weights else empty[:, 0],
        )

    def _chain(
        self,
        chain: Chain,
        data: EncodedScenes,
        row: int,
        rng: np.random.Generator,
    ) -> tuple[list[Segment], list[Tensor], list[Tensor]]:
        """One chain with its true images: noisy copies of each, then its clean feedback. Also the velocities
        of the copies, and the weights of their tokens."""
        config = self._config
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        segments = chain.prefix(self._condition(chain, data, row), 0, drop(config.drop, rng))
        targets, weights = [], []
        truth = {"painted": data.x_cot_MND, "target": data.x_edit_MND, "source": data.source_MND}
        for phase in chain.phases:
            x0_ND = truth[phase.truth][row].float()
            for t in train_times(config.noise_copies, config.shift, config.antithetic, generator):
                eps_ND = torch.randn(x0_ND.shape, generator=generator)
                x_ND = flow.interpolate(x0_ND[None], eps_ND[None], t[None])[0]
                segments.append(Segment.noise(x_ND, t, data.grid))
                targets.append(flow.velocity_target(x0_ND, eps_ND))
                weights.append(torch.full((len(x0_ND),), config.phase_loss_weights.get(phase.name, 1.0)))
            if phase is not chain.phases[-1]:
                painted_3HW = data.x_cot_M3HW[row] if phase.truth == "painted" else None
                shown_3HW = self._shown(x0_ND, painted_3HW, data.grid) if chain.sees_decoded else None
                segments += chain.feedback(x0_ND, shown_3HW, data.grid, drop(config.drop, rng))
        return segments, targets, weights

    @torch.no_grad()
    def _shown(self, x0_ND: Tensor, painted_3HW: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """What the ViT is shown of a true image: its codec round trip, as a sampler would show it."""
        vit = self._model.vit
        assert vit is not None, "only a model with a ViT looks at pixels"
        if painted_3HW is not None:
            return vit_pixels(pixels(painted_3HW[None]), vit)[0]
        assert self._codec is not None, "a chain that feeds back an unpainted image needs the codec"
        latent = flow.unpatchify(x0_ND[None], grid, self._model.latent_patch)
        return vit_pixels(self._codec.decode(latent), vit)[0]

    def _condition(self, chain: Chain, data: EncodedScenes, row: int) -> Condition:
        return Condition(
            source_latent_BND=data.source_MND[row : row + 1].float(),
            source_vit_B3HW=self._vit(data.source_M3HW[row : row + 1]),
            instruction_BT=chain.encode_prompts([data.instructions[row]]),
            grid=data.grid,
        )

    def _describe(self, data: EncodedScenes, row: int) -> list[Segment]:
        """The marked image, a question, and the region in words (the answer carries the text loss)."""
        question = torch.tensor(self._tokenizer.encode(prompts.describe_prompt()))
        answer = torch.tensor(self._tokenizer.encode(known(data.captions[row], DESCRIBE, "region_caption")))
        shown = self._vit(data.x_cot_M3HW[row : row + 1])
        image = (
            Segment.vae(data.x_cot_MND[row].float(), data.grid) if shown is None else Segment.vit(shown[0])
        )
        return [image, Segment.text(question), Segment.text(answer, loss=True)]

    def _locate(self, data: EncodedScenes, row: int, lost: Drop) -> list[Segment]:
        """The source, an instruction, and where its region is (the answer carries the text loss)."""
        asked = prompts.locate_prompt(data.instructions[row])
        known(data.captions[row], LOCATE, "region_caption")
        return [*self._source(data, row, lost), *self._answered(asked, data.places[row])]

    def _inventory(self, data: EncodedScenes, row: int, lost: Drop) -> list[Segment]:
        """The source, a question, and all that is in it (the answer carries the text loss)."""
        inventory = known(data.inventories[row], INVENTORY, "scene_caption")
        answer = self._answered(prompts.inventory_prompt(), inventory)
        return [*self._source(data, row, lost), *answer]

    def _point(self, data: EncodedScenes, row: int, lost: Drop) -> list[Segment]:
        """The source, then referring expressions and where they point (the answers carry the text loss)."""
        segments = self._source(data, row, lost)
        for expression, place in known(data.pointers[row], POINT, "pointers"):
            segments += self._answered(prompts.point_prompt(expression), place)
        return segments

    def _source(self, data: EncodedScenes, row: int, lost: Drop) -> list[Segment]:
        segments = [Segment.vae(data.source_MND[row].float(), data.grid, drop=lost.vae)]
        shown = self._vit(data.source_M3HW[row : row + 1])
        if shown is not None:
            segments.append(Segment.vit(shown[0], drop=lost.vit))
        return segments

    def _answered(self, asked: str, answered: str) -> list[Segment]:
        question = torch.tensor(self._tokenizer.encode(asked))
        answer = torch.tensor(self._tokenizer.encode(answered))
        return [Segment.text(question), Segment.text(answer, loss=True)]

    def _vit(self, images_u8: Tensor) -> Tensor | None:
        vit = self._model.vit
        return None if vit is None else vit_pixels(pixels(images_u8), vit)


T = TypeVar("T", str, list[list[str]])


def known(value: T, kind: str, field: str) -> T:
    """What a kind of understanding is taught from, which Scenes always has, but a dataset may lack.

    Raises:
        ConfigError: it is empty.
    """
    if not value:
        raise ConfigError(
            f"mix.{kind}: a sample of the dataset has no {field}, which it is taught from; leave {kind} out "
            "of the mix, or give every sample one"
        )
    return value


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
