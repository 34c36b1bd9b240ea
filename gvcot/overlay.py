"""The reasoning image: a region painted magenta over the source, and how to read it back.

Painting is an exact alpha blend (measured in the method figure of GVCoT, arXiv 2603.01893):

    paint(s, m) = s + m * ALPHA * (MAGENTA - s)                     per pixel, m in {0, 1}

so a mask is read from a drawn reasoning image r without a segmenter, by least squares over the three channels
with d = ALPHA * (MAGENTA - s):

    m = <r - s, d> / <d, d>

s has to be the codec round trip of the source, otherwise the codec's own error is taken for paint. Where the
source itself is (nearly) magenta, d vanishes and no paint can be told from none: such pixels read as 0.

Dimension legend: B images, H W pixels. Images are float in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from gvcot.errors import DataError
from gvcot.types import PaintStyle

MAGENTA: tuple[float, float, float] = (1.0, -1.0, 1.0)
"""(255, 0, 255) in [-1, 1]."""

ALPHA: float = 0.6
"""Opacity of the fill."""

BORDER: float = 0.014
"""Thickness of a box's opaque border, as a share of the image width (6 of 426 px in the paper's figure)."""

MAX_COVERAGE: float = 1.7
"""Coverage is clipped to [0, MAX_COVERAGE]; opaque magenta (a box's border) reads as 1 / ALPHA = 1.67."""

MIN_DISTANCE: float = 0.35
"""Sources closer to magenta than this (Euclidean over RGB in [-1, 1], about 45 of 255 levels) read as
unpainted: there a codec error of a few levels would already look like paint."""

MIN_AREA: int = 6
"""Default size in pixels below which a painted speck is dropped and a hole is filled."""

# Neighbours inside an image only, never across the batch: 8-connected paint, 4-connected background.
_PAINT_NEIGHBOURS = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]).astype(bool)
_HOLE_NEIGHBOURS = _PAINT_NEIGHBOURS & ndimage.generate_binary_structure(3, 1)


def paint(
    source_B3HW: Float[Tensor, "B 3 H W"], mask_BHW: Bool[Tensor, "B H W"], styles: Sequence[PaintStyle]
) -> Float[Tensor, "B 3 H W"]:
    """Paint regions on their sources: the reasoning images that supervised training teaches.

    Args:
        source_B3HW: images in [-1, 1].
        mask_BHW: True where to paint.
        styles: one per image. "mask" fills the mask; "box" fills the bounding box of every connected part
            of it and draws an opaque border just inside the box.

    Raises:
        DataError: shapes that don't agree, or an unknown style.
    """
    _check_images("source", source_B3HW)
    if mask_BHW.dtype != torch.bool or mask_BHW.shape != (len(source_B3HW), *source_B3HW.shape[2:]):
        raise DataError(
            f"paint: the mask is {mask_BHW.dtype} {tuple(mask_BHW.shape)}, expected bool "
            f"{(len(source_B3HW), *source_B3HW.shape[2:])} like the source; convert or resize the mask"
        )
    if len(styles) != len(source_B3HW) or not set(styles) <= {"mask", "box"}:
        raise DataError(
            f"paint: got styles {list(styles)} for {len(source_B3HW)} images; give one 'mask' or 'box' "
            "for each image"
        )
    opacity_BHW = ALPHA * mask_BHW.to(source_B3HW.dtype)
    for row, style in enumerate(styles):
        if style == "box":
            opacity_BHW[row] = _box_opacity(mask_BHW[row]).to(opacity_BHW)
    return source_B3HW + opacity_BHW[:, None] * (_magenta(source_B3HW) - source_B3HW)


def coverage(
    reasoning_B3HW: Float[Tensor, "B 3 H W"], source_B3HW: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, "B H W"]:
    """How much paint lies on every pixel: 0 none, 1 the fill, 1 / ALPHA opaque; clipped to [0, MAX_COVERAGE].

    Args:
        reasoning_B3HW: reasoning images in [-1, 1].
        source_B3HW: codec round trip of their sources.

    Raises:
        DataError: the two differ in shape, or are not images.
    """
    _check_images("reasoning image", reasoning_B3HW)
    _check_images("source", source_B3HW)
    if reasoning_B3HW.shape != source_B3HW.shape:
        raise DataError(
            f"overlay: the reasoning images are {tuple(reasoning_B3HW.shape)} but their sources "
            f"{tuple(source_B3HW.shape)}; they must have the same size"
        )
    toward_B3HW = _magenta(source_B3HW) - source_B3HW
    along_BHW = (reasoning_B3HW - source_B3HW).mul_(toward_B3HW).sum(dim=1)
    square_BHW = toward_B3HW.square().sum(dim=1)
    m_BHW = along_BHW / (ALPHA * square_BHW.clamp_min(MIN_DISTANCE**2))
    return m_BHW.clamp_(0.0, MAX_COVERAGE) * (square_BHW >= MIN_DISTANCE**2)


def residual(
    reasoning_B3HW: Float[Tensor, "B 3 H W"],
    source_B3HW: Float[Tensor, "B 3 H W"],
    coverage_BHW: Float[Tensor, "B H W"],
) -> Float[Tensor, "B H W"]:
    """What paint can't explain: rms over RGB of r - s - c * ALPHA * (MAGENTA - s), in [-1, 1] pixel units.

    Args:
        reasoning_B3HW, source_B3HW: as for `coverage`.
        coverage_BHW: what `coverage` gave for them.
    """
    explained_B3HW = torch.lerp(source_B3HW, _magenta(source_B3HW), ALPHA * coverage_BHW[:, None])
    return (reasoning_B3HW - explained_B3HW).square().sum(dim=1).div(3).sqrt()


def read(
    reasoning_B3HW: Float[Tensor, "B 3 H W"],
    source_B3HW: Float[Tensor, "B 3 H W"],
    threshold: float = 0.5,
    *,
    min_area: int = MIN_AREA,
) -> Bool[Tensor, "B H W"]:
    """The mask that a reasoning image shows: coverage above `threshold`, then cleaned (see `clean`).

    Args:
        reasoning_B3HW: reasoning images in [-1, 1].
        source_B3HW: codec round trip of their sources.
        threshold: coverage from which a pixel counts as painted.
        min_area: specks and holes smaller than this many pixels are removed; 0 or 1 keeps all.

    Raises:
        DataError: the two differ in shape, or are not images.
    """
    return clean(coverage(reasoning_B3HW, source_B3HW) >= threshold, min_area)


def clean(mask_BHW: Bool[Tensor, "B H W"], min_area: int = MIN_AREA) -> Bool[Tensor, "B H W"]:
    """Drop painted specks, then fill holes, both of fewer than `min_area` pixels.

    Larger holes stay: the mask of a background is everything but the things in front of it.
    """
    painted_BHW = mask_BHW.detach().cpu().numpy().copy()
    painted_BHW[_small_parts(painted_BHW, _PAINT_NEIGHBOURS, min_area)] = False
    painted_BHW[_small_parts(~painted_BHW, _HOLE_NEIGHBOURS, min_area)] = True
    return torch.from_numpy(painted_BHW).to(mask_BHW.device)


def _small_parts(mask_BHW: np.ndarray, neighbours: np.ndarray, min_area: int) -> np.ndarray:
    """True on the connected parts of `mask_BHW` that have fewer than `min_area` pixels."""
    label_BHW = _label(mask_BHW, neighbours)
    is_small = np.bincount(label_BHW.ravel()) < min_area
    is_small[0] = False
    return is_small[label_BHW]


def _label(mask: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Connected parts, numbered from 1; 0 is outside."""
    label = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=neighbours, output=label)
    return label


def _box_opacity(mask_HW: Tensor) -> Tensor:
    """Opacity of the "box" style: ALPHA inside the parts' bounding boxes, 1 on their borders, 0 elsewhere."""
    height, width = mask_HW.shape
    border = max(1, round(BORDER * width))
    label_HW = _label(mask_HW.cpu().numpy(), np.ones((3, 3), dtype=bool))
    opacity_HW = np.zeros((height, width), dtype=np.float32)
    for rows, columns in ndimage.find_objects(label_HW):
        fill_HW = np.full((rows.stop - rows.start, columns.stop - columns.start), 1.0, dtype=np.float32)
        fill_HW[border:-border, border:-border] = ALPHA
        # Boxes may overlap: a border stays visible through another box's fill.
        opacity_HW[rows, columns] = np.maximum(opacity_HW[rows, columns], fill_HW)
    return torch.from_numpy(opacity_HW)


def _magenta(like_B3HW: Tensor) -> Tensor:
    """The overlay colour as (1, 3, 1, 1), of the images' type and device."""
    return like_B3HW.new_tensor(MAGENTA)[None, :, None, None]


def _check_images(what: str, image_B3HW: Tensor) -> None:
    if image_B3HW.ndim != 4 or image_B3HW.shape[1] != 3 or not image_B3HW.is_floating_point():
        raise DataError(
            f"overlay: the {what} is {image_B3HW.dtype} {tuple(image_B3HW.shape)}, expected float "
            "(B, 3, H, W) in [-1, 1]; convert uint8 images with x / 127.5 - 1 and move channels first"
        )
