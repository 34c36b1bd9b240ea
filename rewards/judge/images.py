"""Images as a judge gets them: enlarged, outlined, as PNG.

Legend: H W pixels. Images are uint8 RGB.
"""

from __future__ import annotations

import io
import math
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

OUTLINE = (255, 0, 255)
"""Colour of a region's outline."""

LINE = 32
"""Characters in a line of text that is written into an image."""


def enlarge(image_HWX: np.ndarray, size: int | None) -> np.ndarray:
    """An image or mask, its pixels repeated by the smallest factor that brings the shorter side to `size`."""
    if size is None:
        return image_HWX
    factor = math.ceil(size / min(image_HWX.shape[:2]))
    return image_HWX.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else image_HWX


def outline(image_HW3: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """The image with a line around the mask, just outside it, so that what is inside stays visible."""
    width = max(1, round(0.01 * image_HW3.shape[1]))
    line_HW = ndimage.binary_dilation(mask_HW, np.ones((3, 3)), iterations=width) & ~mask_HW
    return np.where(line_HW[..., None], np.array(OUTLINE, dtype=np.uint8), image_HW3)


def write_text(image_HW3: np.ndarray, text: str) -> np.ndarray:
    """The image with a white band at its bottom that bears the text in black, in letters as large as fit."""
    height, width = image_HW3.shape[:2]
    image = Image.fromarray(image_HW3)
    draw = ImageDraw.Draw(image)
    lines = textwrap.wrap(text, LINE)
    unit = max(draw.textlength(line, ImageFont.load_default(100)) for line in lines) / 100
    size = min(0.95 * width / unit, 0.5 * height / (1.3 * len(lines)))
    band = 1.3 * size * len(lines)
    draw.rectangle((0, height - band, width, height), fill="white")
    for i, line in enumerate(lines):
        draw.text((0.02 * width, height - band + 1.3 * size * i), line, "black", ImageFont.load_default(size))
    return np.asarray(image)


def png(image_HW3: np.ndarray) -> bytes:
    """The image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
