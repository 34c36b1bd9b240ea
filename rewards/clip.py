"""Rewards by CLIP embeddings: does the rest look the same, and did the image move the way the words ask?

Softer than a pixel's error and coarser: use them where no target is known, and beside `preservation`, never
instead of it.

Dimension legend: B chains, D values of an embedding, H W pixels. Images are float in [-1, 1].
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from gvcot.clip_model import SCENES, load_clip
from gvcot.errors import ConfigError, closest
from gvcot.types import RewardResult
from rewards.base import Reward, RewardBatch, result
from rewards.fidelity import outside

logger = logging.getLogger(__name__)

NEUTRAL = 0.0
"""Grey that hides what is inside the change mask, in edit and source alike."""

REGIONS = ("outside", "image")
"""What `clip_image` looks at."""


class ClipImage(Reward):
    """Cosine of the CLIP embeddings of the edit and of the source's round trip, in [-1, 1].

    With `region: outside`, the change mask's pixels are grey in both, so an edit can't lower the score by
    doing what it is to do; missing where the change mask is unknown or covers the whole image. With
    `region: image`, all is seen, and the score is greatest for the unedited source.
    """

    name = "clip_image"
    reaches = "x_edit"

    def __init__(self, region: str = "outside", model: str = SCENES, weights: str | None = None) -> None:
        """Choose what is compared, and by which network.

        Args:
            region: "outside" or "image".
            model, weights: as in `gvcot.clip_model.load_clip`.

        Raises:
            ConfigError: an unknown region or model, or weights that aren't there.
            CheckpointError: the weights are not the model's.
        """
        if region not in REGIONS:
            raise ConfigError(f"reward {self.name}: unknown region {region!r}; {closest(region, REGIONS)}")
        self.requires = frozenset({"x_edit"} | ({"change_mask"} if region == "outside" else set()))
        self._clip = load_clip(model, weights)

    @torch.no_grad()
    def score(self, batch: RewardBatch) -> RewardResult:
        edit_B3HW, source_B3HW = batch.image("x_edit"), batch.source_rt_B3HW.float()
        valid_B = None
        if "change_mask" in self.requires:
            outside_BHW, valid_B = outside(batch)
            edit_B3HW, source_B3HW = (_masked(x, outside_BHW) for x in (edit_B3HW, source_B3HW))
        cosine_B = (self._clip.images(edit_B3HW) * self._clip.images(source_B3HW)).sum(dim=1)
        return result(cosine_B, valid_B)


class ClipDirection(Reward):
    """Whether the edit moved the image's CLIP embedding the way the words move the text's, in [-1, 1].

        score = <d_image, d_text> / (max(|d_image|, min_change) |d_text|)
        d_image = E(edit) - E(source),    d_text = E(instruction) - E(caption of the region)

    with unit embeddings E: the directional similarity of StyleGAN-NADA (arXiv 2108.00946), where d_text goes
    from a caption of the source to one of the target. No sample has a caption of its target, so the region's
    caption ("a small red circle") stands for before and the instruction ("make the circle blue") for after.
    The unedited source scores 0; below `min_change` the score shrinks with the move.

    Missing where the texts have no direction. Parts: `change` |d_image|; `missing_caption`, 1 where that is
    because the region has no caption, or one that says the same as the instruction; `missing_words`, 1 where
    it is because of words that the network's tokenizer doesn't know.
    """

    name = "clip_direction"
    requires = frozenset({"x_edit", "region_caption"})
    reaches = "x_edit"

    def __init__(self, min_change: float = 0.1, model: str = SCENES, weights: str | None = None) -> None:
        """Choose the network.

        Args:
            min_change: length of d_image (0 to 2) below which its direction counts less.
            model, weights: as in `gvcot.clip_model.load_clip`.

        Raises:
            ConfigError: min_change is not positive, an unknown model, or weights that aren't there.
            CheckpointError: the weights are not the model's.
        """
        if not min_change > 0:
            raise ConfigError(f"reward {self.name}: min_change is {min_change}, expected a number > 0")
        self.min_change = min_change
        self._clip = load_clip(model, weights)

    @torch.no_grad()
    def score(self, batch: RewardBatch) -> RewardResult:
        image_BD = self._clip.images(batch.image("x_edit")) - self._clip.images(batch.source_rt_B3HW)
        pairs = [(s.region_caption, s.instruction) if s.region_caption else ("", "") for s in batch.samples]
        unread = self._clip.unread(text for pair in pairs for text in pair)
        is_unread = [bool(unread.keys() & pair) for pair in pairs]
        if unread:
            first = next(iter(unread.values()))
            logger.warning(
                "%s: %d of %d scores are missing: %s", self.name, sum(is_unread), len(pairs), first
            )
        # Two empty texts are encoded as one: there is no direction.
        pairs = [("", "") if bad else pair for pair, bad in zip(pairs, is_unread, strict=True)]
        before, after = ([pair[i] for pair in pairs] for i in (0, 1))
        after_BD, before_BD = self._clip.texts([*after, *before]).chunk(2)
        text_BD = after_BD - before_BD
        change_B, length_B = image_BD.norm(dim=1), text_BD.norm(dim=1)
        scale_B = change_B.clamp_min(self.min_change) * length_B.clamp_min(1e-6)
        valid_B = length_B > 0
        unread_B = valid_B.new_tensor(is_unread)
        return result(
            (image_BD * text_BD).sum(dim=1) / scale_B,
            valid_B,
            change=change_B,
            missing_caption=~valid_B & ~unread_B,
            missing_words=unread_B,
        )


def _masked(image_B3HW: Tensor, keep_BHW: Tensor) -> Tensor:
    return torch.where(keep_BHW[:, None], image_B3HW, torch.full_like(image_B3HW, NEUTRAL))
