"""What a reward is: a batch of drawn chains in, one raw score per chain out.

A reward never sees weights, other rewards or training progress, and never clips or normalises: `rewards.mix`
and the advantage do that. A score that can't be given (a failed judge, an undefined case) is *missing*, never
0.

Dimension legend: B chains, H W pixels. Images are float in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gvcot import overlay
from gvcot.errors import DataError, RewardError
from gvcot.types import EditSample, RewardResult


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardBatch:
    """B drawn chains, decoded to pixels, with what is known about their samples."""

    samples: Sequence[EditSample]
    """One per chain; chains of a group share theirs."""

    images: dict[str, Tensor]
    """Drawn images by phase name ("x_cot", "x_edit"), each (B, 3, H, W)."""

    source_rt_B3HW: Tensor
    """The source after the codec's round trip: what a perfect copy of it looks like."""

    target_rt_B3HW: Tensor | None
    """The target after the codec's round trip; None where no sample has one. Rows of samples without a target
    hold any finite values."""

    group_B: Tensor
    """int64 group index; chains of a group are adjacent."""

    def image(self, phase: str) -> Tensor:
        """The drawn image of one phase as float32 (B, 3, H, W).

        Raises:
            RewardError: the chain draws no such image, or its shape isn't that of the sources.
        """
        if phase not in self.images:
            raise RewardError(
                f"reward: there is no image {phase!r}, only {sorted(self.images)}; declare it in the "
                "reward's `requires` so that a recipe that can't give it is refused at start"
            )
        image_B3HW = self.images[phase]
        if image_B3HW.shape != self.source_rt_B3HW.shape:
            raise RewardError(
                f"reward: image {phase!r} is {tuple(image_B3HW.shape)} but the sources are "
                f"{tuple(self.source_rt_B3HW.shape)}; decode all phases at the sample's size"
            )
        return image_B3HW.float()

    def rows(self, index_b: Tensor) -> RewardBatch:
        """Some of the chains, by their int64 indices; groups keep their numbers."""
        device = self.source_rt_B3HW.device
        index_b = index_b.to(device)
        return RewardBatch(
            samples=[self.samples[i] for i in index_b.tolist()],
            images={name: image[index_b] for name, image in self.images.items()},
            source_rt_B3HW=self.source_rt_B3HW[index_b],
            target_rt_B3HW=None if self.target_rt_B3HW is None else self.target_rt_B3HW[index_b],
            group_B=self.group_B[index_b.to(self.group_B.device)],
        )

    def painted_BHW(self) -> Tensor:
        """bool (B, H, W): the region that the reasoning image paints. Raises RewardError as `image` does."""
        return overlay.read(self.image("x_cot"), self.source_rt_B3HW.float())

    def mask_BHW(self) -> Tensor:
        """bool (B, H, W): what the instructions refer to."""
        return self._stack([sample.mask_HW for sample in self.samples], "mask")

    def change_mask_BHW(self) -> tuple[Tensor, Tensor]:
        """bool (B, H, W) where target and source may differ, and bool (B,) whether it is known at all."""
        known = [sample.change_mask_HW is not None for sample in self.samples]
        masks = [
            np.zeros_like(s.mask_HW, dtype=bool) if s.change_mask_HW is None else s.change_mask_HW
            for s in self.samples
        ]
        return self._stack(masks, "change mask"), torch.tensor(known, device=self.source_rt_B3HW.device)

    def _stack(self, masks: Sequence[np.ndarray], what: str) -> Tensor:
        size = tuple(self.source_rt_B3HW.shape[2:])
        for sample, mask_HW in zip(self.samples, masks, strict=True):
            if mask_HW.shape != size:
                raise DataError(
                    f"reward: the {what} of {sample.sample_id} is {mask_HW.shape} but its image is {size}; "
                    "resize both together when the dataset is read"
                )
        return torch.from_numpy(np.stack(masks).astype(bool)).to(self.source_rt_B3HW.device)


class Reward(ABC):
    """One scoring rule. Subclasses set `name`, `requires` and `reaches`, and implement `score`.

    A batch holds whole groups (`batch.group_B`), so a reward may also compare the chains of a group.

    Example:
        class Brightness(Reward):
            name = "brightness"
            requires = frozenset({"x_edit"})
            reaches = "x_edit"

            def score(self, batch: RewardBatch) -> RewardResult:
                return result(batch.image("x_edit").mean(dim=(1, 2, 3)))
    """

    name: str
    """What the reward is called where no recipe names it."""

    requires: frozenset[str]
    """Phases and sample fields it reads, of {"x_cot", "x_edit", "mask", "change_mask", "target", "things",
    "region_caption"}; a recipe whose chain or dataset doesn't give them is refused."""

    reaches: str
    """The last phase whose randomness can change the score: "x_cot" or "x_edit"."""

    tasks: frozenset[str] | None = None
    """The tasks it scores, set from the recipe; None: all."""

    may_fail: bool = False
    """Whether scores can be missing because somebody who was asked didn't answer, as a judge may not; their
    share is then logged in evaluations too."""

    options: type | None = None
    """A dataclass of the options, where the class takes them as `**options`."""

    def start(self) -> None:
        """Called once, before training, in every process that will score: check here what scoring needs,
        such as a server, and raise a GvcotError that says what is missing."""
        return

    @abstractmethod
    def score(self, batch: RewardBatch) -> RewardResult:
        """Raw score of each chain; missing scores are marked invalid."""


def result(raw_B: Tensor, valid_B: Tensor | None = None, **parts_B: Tensor) -> RewardResult:
    """A RewardResult in fp32 whose missing scores hold 0; all scores are valid by default."""
    if valid_B is None:
        valid_B = torch.ones_like(raw_B, dtype=torch.bool)
    return RewardResult(
        raw_B=torch.where(valid_B, raw_B, torch.zeros_like(raw_B)).float(),
        valid_B=valid_B,
        parts={name: part_B.float() for name, part_B in parts_B.items()},
    )


def described(name: str, reward: type[Reward]) -> str:
    """What a reward is, takes and needs, in words."""
    lines = [f"{name}{inspect.signature(reward)}", "", inspect.getdoc(reward) or ""]
    if reward.options is not None:
        lines += ["", f"Options ({reward.options.__module__}.{reward.options.__name__}):"]
        for field in dataclasses.fields(reward.options):
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            lines.append(f"    {field.name}: {field.type}{default}")
    needs = ", ".join(sorted(getattr(reward, "requires", ()))) or "what its options say"
    reaches = getattr(reward, "reaches", "what its options say")
    lines += ["", f"Needs {needs}. Reaches {reaches}, the last image that can change it."]
    return "\n".join(lines)
