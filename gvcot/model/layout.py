"""Where every token of a pack stands: the only place that knows boundaries, position ids and drops.

Legend: L tokens of a pack (samples one after another), U of them for the understanding expert, G for the
generation expert (latent tokens, clean or noisy), M noisy latent tokens, Q tokens that predict text,
S segments that hold latents, N latent tokens of one image, D values per latent token, T text ids.

Rules (BAGEL): text is [bos, ids, eos]; an image block is [boi, tokens, eoi]. Text advances the rotary
position by 1 per token. All tokens of an image block share one position; a ViT block and a clean latent
block advance it by 1, a noisy block by 0, so a noisy image and its clean copy stand at the same place.
A dropped image block still advances by 1, a dropped text by 0. Noisy blocks are seen by themselves only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gvcot.model.config import UnifiedConfig

Kind = Literal["text", "vae", "vit", "noise"]
Grid = tuple[int, int]

UNDERSTANDING, VIT, LATENT = 0, 1, 2
"""Values of `Packed.token_kind_L`: text or boundary, ViT token, latent token."""


TEXT_PLACEHOLDER = -2
"""Marks text ids of a layout, which `pack` fills in."""


class SegmentShape(NamedTuple):
    """What the layout of a segment depends on; hashable, so layouts can be reused."""

    kind: Kind
    num_inner: int
    """Tokens without boundaries."""
    length: int
    """Tokens with boundaries."""
    grid: Grid
    loss: bool
    drop: bool


class Span(NamedTuple):
    """Where a segment of a pack stands, and what it lets others see."""

    sample: int
    start: int
    """Offset of its first token in its sample."""
    length: int
    """Tokens with boundaries."""
    causal: bool
    """Text: each token sees those before it. Tokens of an image see all of it."""
    noise: bool
    """Seen by itself only."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """Several samples in one flat sequence, with everything `UnifiedModel.forward` needs."""

    position_ids_L: Tensor
    """int64 rotary positions; restart at 0 in each sample."""

    token_kind_L: Tensor
    """uint8: UNDERSTANDING, VIT or LATENT."""

    token_ids_L: Tensor
    """int64 vocabulary ids of text and boundary tokens, -1 elsewhere."""

    segment_L: Tensor
    """int64 index of the token's segment in its sample; dropped segments are counted."""

    sample_L: Tensor
    """int64 index of the token's sample."""

    offset_L: Tensor
    """int64 index of the token in its sample."""

    visible_end_L: Tensor
    """int64: the token sees its sample's tokens at offsets below this one, noisy blocks excepted."""

    noise_L: Tensor
    """bool: tokens of noisy blocks, boundaries included."""

    sample_lens: list[int]
    """Tokens per sample; 0 for a sample of which everything was dropped."""

    spans: list[Span]
    """Its segments, in order; dropped ones are left out."""

    advance: list[int]
    """Rotary positions per sample, i.e. where a continuation would start."""

    all_full: bool
    """True when every sample is one image block and all are of one length: no mask is needed."""

    und_idx: Tensor
    """int64 (U,): flat indices of understanding tokens."""

    gen_idx: Tensor
    """int64 (G,): flat indices of latent tokens."""

    word_rows: Tensor
    """int64: which understanding tokens are words or boundaries (the others are ViT tokens)."""

    vit_rows: tuple[Tensor, ...]
    """Per image size, int64 (images, tokens): which understanding tokens the images' tokens are."""

    vit_pixels: tuple[Tensor, ...]
    """Per image size, fp32 (images, 3, H, W)."""

    vit_table_rows: tuple[Tensor, ...]
    """Per image size, int64 (tokens,): rows of the ViT's position tables."""

    latent_GD: Tensor
    """Latent tokens, clean and noisy, in pack order."""

    latent_rows_G: Tensor
    """int64 rows of the latent position table."""

    latent_segment_G: Tensor
    """int64 index into `t_S`."""

    t_S: Tensor
    """fp32 noise level of each segment of latents."""

    noise_rows_M: Tensor
    """int64: which latent tokens are noisy."""

    logit_rows_Q: Tensor
    """int64: which understanding tokens predict text."""

    text_targets_Q: Tensor
    """int64: what they predict."""

    last_rows: Tensor
    """int64 (samples that are not empty,): understanding row of each one's last token."""

    noise_slices: list[list[slice]]
    """Per sample and noisy segment, its tokens in the flat velocity (M, D)."""

    def to(self, device: torch.device | str) -> Packed:
        """The same pack on another device."""
        moved: dict[str, Tensor | tuple[Tensor, ...]] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device)
            elif isinstance(value, tuple):
                moved[field.name] = tuple(part.to(device) for part in value)
        return dataclasses.replace(self, **moved)


def table_rows(grid: Grid, side: int) -> np.ndarray:
    """Rows of a `side` x `side` position table for a grid's tokens, row-major: row * side + column."""
    return (np.arange(grid[0])[:, None] * side + np.arange(grid[1])).reshape(-1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Table:
    """The kept segments of a pack as columns of one table."""

    shapes: list[SegmentShape]
    sample: np.ndarray
    index: np.ndarray
    """Index in its sample, dropped segments counted."""
    base: np.ndarray
    """Rotary position of the first token."""
    start: np.ndarray
    """Flat index of the first token."""
    length: np.ndarray
    """Tokens with boundaries."""
    row_L: np.ndarray
    """For every token of the pack, its row of this table."""
    is_bare: np.ndarray
    is_text: np.ndarray
    is_vit: np.ndarray
    is_noise: np.ndarray
    has_loss: np.ndarray
    advance: list[int]


def _advance(shape: SegmentShape) -> int:
    if shape.kind == "text":
        return 0 if shape.drop else shape.length
    return 0 if shape.kind == "noise" else 1


def _table(shapes: tuple[tuple[SegmentShape, ...], ...]) -> _Table:
    kept: list[SegmentShape] = []
    columns: list[tuple[int, int, int]] = []
    advance: list[int] = []
    for sample, segments in enumerate(shapes):
        position = 0
        for index, shape in enumerate(segments):
            if not shape.drop:
                kept.append(shape)
                columns.append((sample, index, position))
            position += _advance(shape)
        advance.append(position)
    sample_index_base = np.array(columns, dtype=np.int64).reshape(-1, 3)
    kinds = np.array([shape.kind for shape in kept], dtype="U5")
    length = np.array([shape.length for shape in kept], dtype=np.int64)
    return _Table(
        shapes=kept,
        sample=sample_index_base[:, 0],
        index=sample_index_base[:, 1],
        base=sample_index_base[:, 2],
        start=np.cumsum(length) - length,
        length=length,
        row_L=np.repeat(np.arange(len(kept)), length),
        is_bare=np.array([shape.length == shape.num_inner for shape in kept], dtype=bool),
        is_text=kinds == "text",
        is_vit=kinds == "vit",
        is_noise=kinds == "noise",
        has_loss=np.array([shape.loss for shape in kept], dtype=bool),
        advance=advance,
    )


@lru_cache(maxsize=64)
def layout(shapes: tuple[tuple[SegmentShape, ...], ...], config: UnifiedConfig) -> Packed:
    """Everything of a pack that does not depend on payloads. Cached: samplers repeat one layout."""
    table = _table(shapes)
    lens = np.bincount(table.sample, weights=table.length, minlength=len(shapes)).astype(np.int64)
    columns = _token_columns(table, lens, config)
    streams = _stream_rows(table, lens, columns)
    tensors = columns | streams | _latent_rows(table, config)
    vit_rows, vit_table_rows = _vit_rows(table, streams["und_idx"], config)
    return Packed(
        **{name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in tensors.items()},
        sample_lens=lens.tolist(),
        spans=_spans(table, lens),
        advance=table.advance,
        all_full=_all_full(table, len(shapes)),
        vit_rows=vit_rows,
        vit_table_rows=vit_table_rows,
        vit_pixels=(),
        latent_GD=torch.zeros(0, config.latent_dim),
        t_S=torch.zeros(0),
        text_targets_Q=torch.zeros(0, dtype=torch.int64),
        noise_slices=_noise_slices(table, len(shapes)),
    )


def _token_columns(table: _Table, lens: np.ndarray, config: UnifiedConfig) -> dict[str, np.ndarray]:
    """What is known of every token, in pack order."""
    row = table.row_L
    inner = np.arange(len(row)) - table.start[row]
    first, last = inner == 0, inner == table.length[row] - 1
    is_text = table.is_text[row]
    edge = (first | last) & ~table.is_bare[row]
    sample = table.sample[row]
    offset = np.arange(len(row)) - (np.cumsum(lens) - lens)[sample]
    ids = config.token_ids
    boundary = np.where(is_text, np.where(first, ids.bos, ids.eos), np.where(first, ids.boi, ids.eoi))
    image_kind = np.where(table.is_vit[row], VIT, LATENT)
    return {
        "position_ids_L": table.base[row] + np.where(is_text, inner, 0),
        "token_kind_L": np.where(edge | is_text, UNDERSTANDING, image_kind).astype(np.uint8),
        "token_ids_L": np.where(edge, boundary, np.where(is_text, TEXT_PLACEHOLDER, -1)),
        "segment_L": table.index[row],
        "sample_L": sample,
        "offset_L": offset,
        "visible_end_L": np.where(is_text, offset + 1, offset - inner + table.length[row]),
        "noise_L": table.is_noise[row],
    }


def _stream_rows(table: _Table, lens: np.ndarray, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The split of the pack into the two experts' streams, and what is read from each."""
    row, kind = table.row_L, columns["token_kind_L"]
    und, gen = np.flatnonzero(kind != LATENT), np.flatnonzero(kind == LATENT)
    last = np.arange(len(row)) == (table.start + table.length - 1)[row]
    predicts = table.is_text[row] & table.has_loss[row] & ~last
    sample_ends = (np.cumsum(lens) - 1)[lens > 0]
    return {
        "und_idx": und,
        "gen_idx": gen,
        "word_rows": np.flatnonzero(kind[und] == UNDERSTANDING),
        "noise_rows_M": np.flatnonzero(columns["noise_L"][gen]),
        "logit_rows_Q": np.flatnonzero(predicts[und]),
        "last_rows": np.searchsorted(und, sample_ends),
    }


def _latent_rows(table: _Table, config: UnifiedConfig) -> dict[str, np.ndarray]:
    grids = [shape.grid for shape in table.shapes if shape.kind in ("vae", "noise")]
    known = {grid: table_rows(grid, config.max_latent) for grid in set(grids)}
    rows = [known[grid] for grid in grids]
    return {
        "latent_rows_G": np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64),
        "latent_segment_G": np.repeat(np.arange(len(grids)), [len(part) for part in rows]).astype(np.int64),
    }


def _vit_rows(
    table: _Table, und: np.ndarray, config: UnifiedConfig
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Per image size: understanding rows (images, tokens), and rows of the position tables (tokens,)."""
    groups: dict[Grid, list[int]] = {}
    for shape, start in zip(table.shapes, table.start.tolist(), strict=True):
        if shape.kind == "vit":
            groups.setdefault(shape.grid, []).append(start + 1)
    side = 0 if config.vit is None else config.vit.max_side
    table_rows_N = [torch.from_numpy(table_rows(grid, side)) for grid in groups]
    flat_IN = [np.array(firsts)[:, None] + np.arange(grid[0] * grid[1]) for grid, firsts in groups.items()]
    return tuple(torch.from_numpy(np.searchsorted(und, flat)) for flat in flat_IN), tuple(table_rows_N)


def _spans(table: _Table, lens: np.ndarray) -> list[Span]:
    offset = table.start - (np.cumsum(lens) - lens)[table.sample]
    columns = (table.sample, offset, table.length, table.is_text, table.is_noise)
    return [Span(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _all_full(table: _Table, num_samples: int) -> bool:
    one_each = len(table.sample) == num_samples and len(set(table.sample.tolist())) == num_samples
    return one_each and not table.is_text.any() and len(set(table.length.tolist())) == 1


def _noise_slices(table: _Table, num_samples: int) -> list[list[slice]]:
    slices: list[list[slice]] = [[] for _ in range(num_samples)]
    start = 0
    for shape, sample in zip(table.shapes, table.sample.tolist(), strict=True):
        if shape.kind == "noise":
            slices[sample].append(slice(start, start + shape.num_inner))
            start += shape.num_inner
    return slices
