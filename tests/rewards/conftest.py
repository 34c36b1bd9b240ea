"""Small batches of chains with known truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from gvcot.types import EditSample, Region
from rewards.base import RewardBatch

SIZE = 16


@pytest.fixture
def square() -> Callable[..., np.ndarray]:
    """square(top, left, bottom, right) -> bool (16, 16)."""

    def make(top: int, left: int, bottom: int, right: int) -> np.ndarray:
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        mask[top:bottom, left:right] = True
        return mask

    return make


@pytest.fixture
def make_batch() -> Callable[..., RewardBatch]:
    """make_batch(masks, x_cot=..., x_edit=..., ...): one chain per mask, a grey source with a light target
    inside the change mask. Images default to the source. The mask is a thing and the rest another."""

    def make(
        masks: list[np.ndarray],
        *,
        change_masks: list[np.ndarray | None] | None = None,
        source: torch.Tensor | None = None,
        target: torch.Tensor | None = None,
        images: dict[str, torch.Tensor] | None = None,
        has_target: bool = True,
    ) -> RewardBatch:
        batch, size = len(masks), masks[0].shape
        blank = np.zeros((*size, 3), dtype=np.uint8)
        changes = masks if change_masks is None else change_masks
        samples = [
            EditSample(
                sample_id=f"test/{i}",
                source_HW3=blank,
                instruction="brighten the square",
                task="color",
                referral="spatial",
                mask_HW=mask,
                regions=(),
                target_HW3=blank if has_target else None,
                change_mask_HW=change,
                things=tuple(Region(box=(0, 0, *size), mask_HW=m) for m in (mask, ~mask)),
                referents=(0,),
            )
            for i, (mask, change) in enumerate(zip(masks, changes, strict=True))
        ]
        if source is None:
            source = torch.full((batch, 3, *size), -0.2)
        if target is None:
            inside = torch.from_numpy(np.stack(masks))[:, None]
            target = torch.where(inside, torch.full_like(source, 0.6), source)
        return RewardBatch(
            samples=samples,
            images={"x_cot": source, "x_edit": source} | (images or {}),
            source_rt_B3HW=source,
            target_rt_B3HW=target if has_target else None,
            group_B=torch.arange(batch),
        )

    return make
