"""Joint attention of both experts: where tokens stand, what they see, and what is cached.

Legend: B samples, L tokens per sample after padding (Lmax), P = B * L padded slots, K cached keys per
sample, U and G rows of the two experts' streams, h query heads, kv key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from gvcot.model.compute import Attention
from gvcot.model.layout import Packed
from gvcot.model.spans import Segments, attend_segments, narrowed, segments_of

MOST_DENSE = 1024
"""Most keys of a sample for which "auto" builds a mask. For small packs both cost the same; a mask's memory
grows with the square of the length, and much of what is computed is masked away."""


def visibility(packed: Packed) -> Bool[Tensor, "B L L"]:
    """What each token sees of its own sample, padded: query row, key column.

    Rows of padding see something, whatever it is, so that their softmax is defined; nobody reads them.
    """
    batch, length = len(packed.sample_lens), max(packed.sample_lens, default=0)
    slot_L = packed.sample_L * length + packed.offset_L

    def pad(values_L: Tensor, fill: int) -> Tensor:
        padded = values_L.new_full((batch * length,), fill)
        return padded.index_copy(0, slot_L, values_L).view(batch, length)

    end_BL = pad(packed.visible_end_L, length)
    segment_BL = pad(packed.segment_L, -1)
    noise_BL = pad(packed.noise_L, False)
    offset_L = torch.arange(length, device=end_BL.device)
    reached = offset_L < end_BL[:, :, None]
    own = segment_BL[:, :, None] == segment_BL[:, None, :]
    return reached & (own | ~noise_BL[:, None, :])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slots:
    """Where the rows of both streams stand in padded per-sample batches, and their rotary angles."""

    batch: int
    length: int
    """L, the most rows of one sample."""

    slot_U: Tensor
    """int64: padded slot of each understanding row."""

    slot_G: Tensor
    """int64: padded slot of each latent row."""

    cos_BL1d: Tensor
    """Rotary cosines."""

    sin_BL1d: Tensor
    """Rotary sines; the first half is negated, for x * cos + swap_halves(x) * sin."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttnSpec:
    """One attention pattern, shared by the layers of a forward pass."""

    queries: Slots
    """The rows that look."""

    keys: Slots
    """The rows that are looked at, beside cached ones."""

    bias_B1LK: Tensor | None
    """Added to the attention logits: 0 or -inf over cached and new keys; None where all is visible, or with
    `segments`."""

    segments: Segments | None
    """Segment by segment, what is seen; None where all is visible, or with a bias."""

    cached: bool
    """Whether keys and values are to be kept for a cache."""

    rows: tuple[Tensor, Tensor] | None = None
    """int64 (understanding, latent): which rows of the streams look; None for all."""

    def looking(self, x_U: Tensor, x_G: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of both streams that look."""
        if self.rows is None:
            return x_U, x_G
        return x_U.index_select(0, self.rows[0]), x_G.index_select(0, self.rows[1])


@dataclass(slots=True, kw_only=True, eq=False)
class Cache:
    """Keys and values of the segments so far, one row per chain, padded to one length.

    Tensors are replaced, never written in place, so `copy` shares them and gradients can flow.
    """

    layers: list[tuple[Tensor, Tensor] | None]
    """Per layer, keys and values (B, kv, K, d); None before the first segment."""

    valid_BK: Tensor
    """bool: slots that hold a token; padding of shorter or dropped segments is False."""

    next_position_B: Tensor
    """int64 rotary position at which the next segment starts."""

    dense: bool = True
    """True while every slot is valid."""

    @property
    def batch(self) -> int:
        """Number of rows, B."""
        return self.next_position_B.shape[0]

    def copy(self) -> Cache:
        """An independent continuation of the same prefix; shares the tensors."""
        return Cache(
            layers=list(self.layers),
            valid_BK=self.valid_BK,
            next_position_B=self.next_position_B,
            dense=self.dense,
        )

    def repeat(self, times: int) -> Cache:
        """Row i becomes rows i * times ... (i + 1) * times - 1, e.g. the chains of a group."""

        def rows(x: Tensor) -> Tensor:
            return x.repeat_interleave(times, dim=0)

        return Cache(
            layers=[None if kv is None else (rows(kv[0]), rows(kv[1])) for kv in self.layers],
            valid_BK=rows(self.valid_BK),
            next_position_B=rows(self.next_position_B),
            dense=self.dense,
        )

    def append(self, new_kv: Sequence[tuple[Tensor, Tensor]], packed: Packed) -> None:
        """Take over the keys and values of a pack with one segment per row."""
        lens_B = torch.tensor(packed.sample_lens, device=self.valid_BK.device)
        length = max(packed.sample_lens, default=0)
        if length:
            self.layers = [
                kv if past is None else (torch.cat([past[0], kv[0]], 2), torch.cat([past[1], kv[1]], 2))
                for past, kv in zip(self.layers, new_kv, strict=True)
            ]
            new_valid = torch.arange(length, device=lens_B.device) < lens_B[:, None]
            self.valid_BK = torch.cat([self.valid_BK, new_valid], dim=1)
            self.dense = self.dense and min(packed.sample_lens) == length
        advance_B = torch.tensor(packed.advance, device=self.valid_BK.device)
        self.next_position_B = self.next_position_B + advance_B


def build_spec(
    packed: Packed,
    *,
    head_dim: int,
    rope_theta: float,
    dtype: torch.dtype,
    cache: Cache | None = None,
    attention: Attention = "auto",
) -> AttnSpec:
    """The attention of a pack, on its own or after the rows of `cache` (one sample per row)."""
    batch, length = len(packed.sample_lens), max(packed.sample_lens, default=0)
    slot_L = packed.sample_L * length + packed.offset_L
    position_L = packed.position_ids_L
    if cache is not None:
        position_L = position_L + cache.next_position_B[packed.sample_L]
    position_P = position_L.new_zeros(batch * length).index_copy(0, slot_L, position_L)
    cos, sin = rope_tables(position_P.view(batch, length, 1, 1), head_dim, rope_theta)
    slots = Slots(
        batch=batch,
        length=length,
        slot_U=slot_L[packed.und_idx],
        slot_G=slot_L[packed.gen_idx],
        cos_BL1d=cos.to(dtype),
        sin_BL1d=torch.cat([-sin[..., : head_dim // 2], sin[..., head_dim // 2 :]], -1).to(dtype),
    )
    bias, segments = None, None
    if packed.all_full and (cache is None or cache.dense):
        pass
    elif attention == "dense" or (attention == "auto" and _num_keys(length, cache) <= MOST_DENSE):
        bias = _bias(packed, cache, dtype)
    else:
        valid_BK = None if cache is None else cache.valid_BK.cpu().numpy()
        segments = segments_of(packed.spans, length, valid_BK, slot_L.device)
    return AttnSpec(queries=slots, keys=slots, bias_B1LK=bias, segments=segments, cached=cache is not None)


def narrow(spec: AttnSpec, rows_U: Tensor, rows_G: Tensor) -> AttnSpec:
    """The same pattern for fewer looking rows: what a last layer needs when only they are read."""
    keys = spec.keys
    slot = torch.cat([keys.slot_U[rows_U], keys.slot_G[rows_G]])
    sample = slot // keys.length if keys.length else slot
    count_B = torch.bincount(sample, minlength=keys.batch)
    length = int(count_B.max()) if len(slot) else 0
    rank = torch.empty_like(slot).index_copy(0, slot.argsort(), torch.arange(len(slot), device=slot.device))
    new_slot = sample * length + rank - (count_B.cumsum(0) - count_B)[sample]
    # Padding repeats its sample's first row, which sees something; nobody reads the result.
    padding = torch.arange(keys.batch, device=slot.device).repeat_interleave(length) * keys.length
    source = padding.index_copy(0, new_slot, slot)

    def take(x: Tensor) -> Tensor:
        return x.flatten(0, 1)[source].unflatten(0, (keys.batch, length))

    bias, segments = spec.bias_B1LK, spec.segments
    if segments is not None:
        new_slot_P = slot.new_full((keys.batch * keys.length,), -1).index_copy(0, slot, new_slot)
        segments = narrowed(segments, new_slot_P)
    queries = Slots(
        batch=keys.batch,
        length=length,
        slot_U=new_slot[: len(rows_U)],
        slot_G=new_slot[len(rows_U) :],
        cos_BL1d=take(keys.cos_BL1d),
        sin_BL1d=take(keys.sin_BL1d),
    )
    return AttnSpec(
        queries=queries,
        keys=keys,
        bias_B1LK=None if bias is None else take(bias[:, 0])[:, None],
        segments=segments,
        cached=spec.cached,
        rows=(rows_U, rows_G),
    )


def _num_keys(length: int, cache: Cache | None) -> int:
    return length + (0 if cache is None else cache.valid_BK.shape[1])


def _bias(packed: Packed, cache: Cache | None, dtype: torch.dtype) -> Tensor:
    visible = visibility(packed)
    if cache is not None and cache.valid_BK.shape[1]:
        past = cache.valid_BK[:, None, :].expand(-1, visible.shape[1], -1)
        visible = torch.cat([past, visible], dim=2)
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, -torch.inf)[:, None]


def rope_tables(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """fp32 cosines and sines (*position_ids.shape, head_dim), where positions have a last axis of 1."""
    exponent = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angle = position_ids.float() * theta**-exponent
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def apply_rope(x_BLhd: Tensor, slots: Slots) -> Tensor:
    """Rotate (x1, x2) halves: x1 * cos - x2 * sin, x2 * cos + x1 * sin."""
    swapped = x_BLhd.roll(x_BLhd.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_BLhd * slots.cos_BL1d, swapped, slots.sin_BL1d)


class _Join(torch.autograd.Function):
    """Two streams of rows into padded slots (zero elsewhere). Slots are distinct, so the gradient is a
    plain gather; autograd's own formula for a gather's gradient would accumulate row by row."""

    @staticmethod
    def forward(ctx, x_U: Tensor, x_G: Tensor, slot_U: Tensor, slot_G: Tensor, num_slots: int) -> Tensor:
        ctx.save_for_backward(slot_U, slot_G)
        joined = x_U.new_zeros(num_slots, *x_U.shape[1:])
        return joined.index_copy_(0, slot_U, x_U).index_copy_(0, slot_G, x_G)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        (grad_P,) = grad_outputs
        slot_U, slot_G = ctx.saved_tensors
        return *_Split.apply(grad_P, slot_U, slot_G), None, None, None


class _Split(torch.autograd.Function):
    """The inverse of `_Join`: padded slots back into two streams of rows."""

    @staticmethod
    def forward(ctx, x_P: Tensor, slot_U: Tensor, slot_G: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(slot_U, slot_G)
        ctx.num_slots = x_P.shape[0]
        return x_P.index_select(0, slot_U), x_P.index_select(0, slot_G)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        grad_U, grad_G = grad_outputs
        slot_U, slot_G = ctx.saved_tensors
        return _Join.apply(grad_U, grad_G, slot_U, slot_G, ctx.num_slots), None, None


def join_streams(x_U: Tensor, x_G: Tensor, slots: Slots) -> Tensor:
    """Rows of both experts (U, ...) and (G, ...) to padded slots (B, L, ...), zero where padded."""
    joined = _Join.apply(x_U, x_G, slots.slot_U, slots.slot_G, slots.batch * slots.length)
    return joined.unflatten(0, (slots.batch, slots.length))


def split_streams(x_BL: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
    """Padded slots (B, L, ...) to the rows of both experts."""
    return _Split.apply(x_BL.flatten(0, 1), slots.slot_U, slots.slot_G)


def attend(
    q_BhLd: Float[Tensor, "B h L d"],
    k_BkKd: Float[Tensor, "B kv K d"],
    v_BkKd: Float[Tensor, "B kv K d"],
    spec: AttnSpec,
) -> Float[Tensor, "B h L d"]:
    """Grouped-query attention over cached and new keys."""
    if not q_BhLd.shape[2]:
        return q_BhLd
    if spec.segments is not None:
        return attend_segments(q_BhLd, k_BkKd, v_BkKd, spec.segments)
    return F.scaled_dot_product_attention(q_BhLd, k_BkKd, v_BkKd, attn_mask=spec.bias_B1LK, enable_gqa=True)
