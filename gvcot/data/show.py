"""Looking at samples: one picture that shows what each of them asks for."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from gvcot.data.images import to_tensor, to_uint8
from gvcot.overlay import paint
from gvcot.types import EditSample

_GAP = 8
_LINE = 15
_FONT_SIZE = 13
_CHAR_WIDTH = 7
_NUM_LINES = 3


def painted(sample: EditSample) -> np.ndarray:
    """uint8 (H, W, 3): the source with its region painted, which is the true reasoning image."""
    mask_BHW = torch.from_numpy(sample.mask_HW)[None]
    return to_uint8(paint(to_tensor([sample.source_HW3]), mask_BHW, [sample.paint]))[0]


def contact_sheet(samples: Sequence[EditSample], scale: int = 3, columns: int = 2) -> Image.Image:
    """All samples on one sheet: source, painted region and target, with the instruction below.

    Args:
        samples: At least one, all of one image size. A sample without a target shows its source again.
        scale: Screen pixels per image pixel.
        columns: Samples side by side.
    """
    return sheet([(s, [s.source_HW3, painted(s), _target(s)]) for s in samples], scale, columns)


def drawn_sheet(
    samples: Sequence[EditSample], images: Mapping[str, np.ndarray], scale: int = 2, columns: int = 2
) -> Image.Image:
    """What a model drew: source, its images in the order of the chain, target; the instruction below.

    Args:
        samples: At least one, all of one image size.
        images: Phase name -> uint8 (B, H, W, 3), one per sample.
        scale, columns: As in `contact_sheet`.
    """
    rows = [
        (sample, [sample.source_HW3, *(images[name][i] for name in images), _target(sample)])
        for i, sample in enumerate(samples)
    ]
    return sheet(rows, scale, columns)


def sheet(rows: Sequence[tuple[EditSample, list[np.ndarray]]], scale: int, columns: int) -> Image.Image:
    """Samples with the images to show for each, on one sheet; arguments as in `contact_sheet`."""
    tiles = [_tile(sample, images, scale) for sample, images in rows]
    width, height = tiles[0].width + 2 * _GAP, tiles[0].height + 2 * _GAP
    columns = min(columns, len(tiles))
    out = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        out.paste(tile, (column * width + _GAP, row * height + _GAP))
    return out


def _target(sample: EditSample) -> np.ndarray:
    return sample.source_HW3 if sample.target_HW3 is None else sample.target_HW3


def _tile(sample: EditSample, images: list[np.ndarray], scale: int) -> Image.Image:
    """The images side by side, with the sample's words below."""
    height, width = sample.source_HW3.shape[:2]
    size = (width * scale, height * scale)
    tile_width = len(images) * (size[0] + _GAP) - _GAP
    tile = Image.new("RGB", (tile_width, size[1] + _NUM_LINES * _LINE + 6), "white")
    for i, image_HW3 in enumerate(images):
        picture = Image.fromarray(image_HW3).resize(size, Image.Resampling.NEAREST)
        tile.paste(picture, (i * (size[0] + _GAP), 0))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(_FONT_SIZE)
    lines = textwrap.wrap(sample.instruction, tile_width // _CHAR_WIDTH)[: _NUM_LINES - 1]
    for i, line in enumerate(lines):
        draw.text((0, size[1] + 3 + i * _LINE), line, fill="black", font=font)
    note = f"{sample.task}, {sample.referral}: {sample.region_caption}"
    draw.text((0, size[1] + 3 + len(lines) * _LINE), note, fill="#777777", font=font)
    return tile
