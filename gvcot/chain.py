"""Chains: from a source image and an instruction to the edit, phase by phase.

A chain is a list of phases. SFT packing, sampling and replay all build their sequences here, so a
trajectory is conditioned at update time exactly as it was when it was sampled.

Sequence of the `gvcot` chain (GVCoT, arXiv 2603.01893, method figure; segment order as BAGEL's edits):

    system text | source VAE | source ViT | instruction
        | x_cot (noise) | x_cot VAE | x_cot ViT | x_edit (noise)

Legend: B rows, N latent tokens, D values per token, T text tokens, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gvcot import prompts
from gvcot.errors import ConfigError, closest
from gvcot.model.sequence import Segment
from gvcot.model.tokenizer import Tokenizer
from gvcot.types import ChainConfig, Condition

TEXT_PAD = -1
"""Fills the right side of ragged id tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseSpec:
    """One step of a chain."""

    name: str
    """"x_cot" or "x_edit"."""

    kind: Literal["image"]
    """What is generated."""

    truth: Literal["painted", "target", "source"]
    """What supervised training shows as this image: the source with the region painted on it, the edited
    image, or the source as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainSpec:
    """A chain before it is bound to a tokenizer."""

    system: str | None
    """System prompt, or None."""

    phases: tuple[PhaseSpec, ...]
    """In the order of generation."""

    wrap: Callable[[str], str] | None = None
    """Turns the instruction into the prompt; None: the instruction itself."""


X_COT = PhaseSpec(name="x_cot", kind="image", truth="painted")
X_EDIT = PhaseSpec(name="x_edit", kind="image", truth="target")
X_COPY = PhaseSpec(name="x_cot", kind="image", truth="source")

CHAINS: dict[str, ChainSpec] = {
    "direct": ChainSpec(system=None, phases=(X_EDIT,)),
    "mask": ChainSpec(system=None, phases=(X_COT,), wrap=prompts.mask_prompt),
    "gvcot": ChainSpec(system=prompts.SYSTEM, phases=(X_COT, X_EDIT)),
    "edit_first": ChainSpec(system=prompts.SYSTEM, phases=(X_EDIT, X_COT)),
    "blank": ChainSpec(system=prompts.SYSTEM, phases=(X_COPY, X_EDIT)),
}
"""`direct` edits at once, `mask` is stage 1's masking skill alone, `gvcot` draws where and then edits. Two
controls have the tokens and the cost of `gvcot`: `edit_first` has its labels too, in the other order, so that
no reasoning reaches the edit; `blank` repeats the source where `gvcot` would draw its reasoning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """Which conditions of one row are left out (condition dropout, classifier-free guidance)."""

    text: bool = False
    vae: bool = False
    vit: bool = False


KEEP = Drop()


class Chain:
    """A chain bound to a tokenizer: turns conditions and drawn images into segments."""

    def __init__(self, config: ChainConfig, tokenizer: Tokenizer, *, has_vit: bool) -> None:
        """
        Args:
            config: which chain, and how drawn images are fed back.
            tokenizer: encodes the system prompt.
            has_vit: whether the model has a ViT; without one "vit" feedback is left out.

        Raises:
            ConfigError: unknown chain, or no feedback is left for a chain that needs it.
        """
        if config.name not in CHAINS:
            raise ConfigError(f"unknown chain {config.name!r}; {closest(config.name, CHAINS)}")
        spec = CHAINS[config.name]
        self.name = config.name
        self.phases = spec.phases
        self.feedback_kinds = tuple(k for k in config.feedback if k == "vae" or has_vit)
        if len(spec.phases) > 1 and not self.feedback_kinds:
            raise ConfigError(
                f"chain {config.name!r} feeds its first image back, but feedback={list(config.feedback)} "
                f"leaves nothing for a model {'with' if has_vit else 'without'} a ViT; use feedback=[vae]"
            )
        self._wrap = spec.wrap
        self._tokenizer = tokenizer
        self._system_T = None if spec.system is None else torch.tensor(tokenizer.encode(spec.system))

    @property
    def reasons_first(self) -> bool:
        """Whether the edit is drawn in sight of x_cot."""
        return [phase.name for phase in self.phases] == ["x_cot", "x_edit"]

    @property
    def sees_decoded(self) -> bool:
        """Whether later phases need the decoded pixels of earlier images."""
        return len(self.phases) > 1 and "vit" in self.feedback_kinds

    def encode_prompts(self, instructions: Sequence[str]) -> Tensor:
        """Instructions -> int64 (B, T) ids of this chain's prompts, right-padded with `TEXT_PAD`.

        Raises:
            DataError: words that are not in the vocabulary.
        """
        prompts_B = [self._wrap(i) if self._wrap else i for i in instructions]
        return pad_ids([self._tokenizer.encode(p) for p in prompts_B])

    def prefix(self, condition: Condition, row: int, drop: Drop = KEEP) -> list[Segment]:
        """What stands before the first phase, for one row of a condition."""
        segments = [] if self._system_T is None else [Segment.text(self._system_T)]
        segments.append(Segment.vae(condition.source_latent_BND[row], condition.grid, drop=drop.vae))
        if condition.source_vit_B3HW is not None:
            segments.append(Segment.vit(condition.source_vit_B3HW[row], drop=drop.vit))
        segments.append(Segment.text(unpad(condition.instruction_BT[row]), drop=drop.text))
        return segments

    def feedback(
        self, tokens_ND: Tensor, pixels_3HW: Tensor | None, grid: tuple[int, int], drop: Drop = KEEP
    ) -> list[Segment]:
        """What a drawn image adds to the context of the phases after it.

        Args:
            tokens_ND: the image's clean latent tokens, as generated.
            pixels_3HW: its decoding at the ViT's size; needed for "vit" feedback only.
            grid: latent tokens as (rows, columns).
            drop: which of the encodings are left out.
        """
        segments = []
        if "vae" in self.feedback_kinds:
            segments.append(Segment.vae(tokens_ND, grid, drop=drop.vae))
        if "vit" in self.feedback_kinds:
            assert pixels_3HW is not None, "a chain with ViT feedback needs the decoded reasoning image"
            segments.append(Segment.vit(pixels_3HW, drop=drop.vit))
        return segments


def unpad(ids_T: Tensor) -> Tensor:
    """Drop the right padding of one row of ids."""
    return ids_T[ids_T != TEXT_PAD]


def pad_ids(rows: list[list[int]]) -> Tensor:
    """Ragged id lists -> int64 (B, T), right-padded with `TEXT_PAD`."""
    width = max((len(r) for r in rows), default=0)
    out_BT = torch.full((len(rows), width), TEXT_PAD, dtype=torch.int64)
    for i, row in enumerate(rows):
        out_BT[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return out_BT
