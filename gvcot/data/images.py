"""Between uint8 images and the float tensors that the model works on.

Legend: B images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gvcot.errors import DataError

Fit = Callable[[int, int], tuple[int, int]]
"""(height, width) of an image -> (height, width) that it is resized to."""


def to_tensor(images_HW3: Sequence[np.ndarray]) -> Tensor:
    """uint8 RGB images of one size -> float32 (B, 3, H, W) in [-1, 1].

    Raises:
        DataError: not uint8 RGB, or sizes differ.
    """
    shapes = {(i.shape, str(i.dtype)) for i in images_HW3}
    if len(shapes) != 1:
        raise DataError(
            f"images of one batch must share one size and type; got {sorted(shapes)}: resize them"
        )
    stacked = np.stack(images_HW3)
    if stacked.dtype != np.uint8 or stacked.ndim != 4 or stacked.shape[-1] != 3:
        raise DataError(
            f"expected uint8 RGB images (H, W, 3); got {next(iter(shapes))}: convert with .convert('RGB')"
        )
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_uint8(images_B3HW: Tensor) -> np.ndarray:
    """Float images in [-1, 1] -> uint8 (B, H, W, 3), rounded and clipped."""
    scaled = images_B3HW.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def resize(image_HW3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 RGB at another size (height, width), bicubic as in BAGEL; an image of that size is left alone."""
    if image_HW3.shape[:2] == size:
        return image_HW3
    height, width = size
    return np.asarray(Image.fromarray(image_HW3).resize((width, height), Image.Resampling.BICUBIC))


def read_image(path: Path, *, multiple: int, fit: Fit | None = None) -> np.ndarray:
    """Read an image file as uint8 RGB (H, W, 3).

    Args:
        path: any format that Pillow reads.
        multiple: both sides must be divisible by this many pixels.
        fit: from (height, width) to the size that the image is brought to, such as `UnifiedConfig.fit`.

    Raises:
        DataError: the file is missing, unreadable, or of a size that the model cannot take.
    """
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(
            f"cannot read the image {path}: {error}. Expected a PNG, JPEG or WebP file"
        ) from error
    pixels_HW3 = np.asarray(rgb, dtype=np.uint8)
    if fit is not None:
        pixels_HW3 = resize(pixels_HW3, fit(*pixels_HW3.shape[:2]))
    height, width = pixels_HW3.shape[:2]
    if width % multiple or height % multiple:
        best = (
            round(width / multiple) * multiple or multiple,
            round(height / multiple) * multiple or multiple,
        )
        raise DataError(
            f"{path} is {width}x{height} px; both sides must be divisible by {multiple}: "
            f"resize it, e.g. to {best[0]}x{best[1]}"
        )
    return pixels_HW3
