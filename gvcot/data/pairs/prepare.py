"""How images and masks of any size are made to fit a run.

Legend: H W pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def centred_square(pixels: np.ndarray) -> np.ndarray:
    """The largest centred square of an image (H, W, 3) or a mask (H, W)."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def prepare(image_HW3: np.ndarray, size: int | None) -> np.ndarray:
    """uint8 RGB at the run's size: a square of `size` pixels, None: as it is. Images of that size don't
    change."""
    if size is None or image_HW3.shape[:2] == (size, size):
        return image_HW3
    resized = Image.fromarray(image_HW3).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8)


def prepare_mask(mask_HW: np.ndarray, size: int, *, keep_all: bool = False) -> np.ndarray:
    """A bool mask as `prepare` treats its image: a pixel is set where half of it is covered.

    Args:
        mask_HW: of the image's size before.
        size: pixels per side.
        keep_all: set all pixels that the mask may reach into, as bicubic resizing spreads it.
    """
    if mask_HW.shape == (size, size):
        return mask_HW
    plain = Image.fromarray(mask_HW.astype(np.float32))
    how = Image.Resampling.BICUBIC if keep_all else Image.Resampling.BOX
    covered_HW = np.asarray(plain.resize((size, size), how))
    return np.abs(covered_HW) > 1e-6 if keep_all else covered_HW >= 0.5
