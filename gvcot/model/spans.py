"""Attention without a mask: the queries of a segment beside exactly the keys that they see.

A segment's tokens all see the same earlier tokens of their sample, and of their own segment all (images)
or those before them (text). So each segment is one small attention of its own, over gathered keys: nothing
masked is computed, no mask over a whole sequence is ever built, and fused kernels that take no mask can be
used. Segments with equal numbers of queries and keys are computed together.

Legend: n segments computed together, q queries and k keys of each, Q and J queries and keys of all
segments, B samples, L looking slots per sample, K key slots per sample (cached and new), P padded slots,
h query heads, kv key-value heads, d head size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gvcot.model.layout import Span


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Segments of one shape, computed together."""

    query_nq: Tensor
    """int64 slots among the B * L padded looking ones."""

    key_nk: Tensor
    """int64 slots among the B * K padded keys."""

    seen_qk: Tensor | None
    """bool, what each query sees of its segment's keys; None for everything."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments:
    """All groups of a pack. Slots of all are kept in one row, so that each tensor is gathered once."""

    groups: tuple[Group, ...]
    query_Q: Tensor
    key_J: Tensor

    @classmethod
    def of(cls, groups: Sequence[Group], device: torch.device) -> Segments:
        """The groups, on a device."""
        return cls(
            groups=tuple(
                replace(group, seen_qk=None if group.seen_qk is None else group.seen_qk.to(device))
                for group in groups
            ),
            query_Q=_row([group.query_nq for group in groups]).to(device),
            key_J=_row([group.key_nk for group in groups]).to(device),
        )


def _row(slots: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in slots] or [torch.zeros(0, dtype=torch.int64)])


def segments_of(
    spans: Sequence[Span], length: int, valid_BK: np.ndarray | None, device: torch.device
) -> Segments:
    """What each segment of a pack sees.

    Args:
        spans: the segments.
        length: padded tokens per sample.
        valid_BK: bool, which cached keys hold a token; their slots come before a sample's new ones.
    """
    num_cached = 0 if valid_BK is None else valid_BK.shape[1]
    context: dict[int, list[np.ndarray]] = {}
    alike: dict[tuple[int, int, bool], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for span in spans:
        if not span.length:
            continue
        first_key = span.sample * (num_cached + length)
        if span.sample not in context:
            cached = [] if valid_BK is None else [np.flatnonzero(valid_BK[span.sample]) + first_key]
            context[span.sample] = cached
        own = np.arange(span.start, span.start + span.length)
        own_keys = own + first_key + num_cached
        keys = np.concatenate([*context[span.sample], own_keys])
        causal = span.causal and span.length > 1
        alike[span.length, len(keys), causal].append((own + span.sample * length, keys))
        if not span.noise:
            context[span.sample].append(own_keys)
    groups = [
        Group(
            query_nq=torch.from_numpy(np.stack([queries for queries, _ in members])),
            key_nk=torch.from_numpy(np.stack([keys for _, keys in members])),
            seen_qk=torch.ones(num_queries, num_keys).tril(num_keys - num_queries).bool() if causal else None,
        )
        for (num_queries, num_keys, causal), members in alike.items()
    ]
    return Segments.of(groups, device)


def narrowed(segments: Segments, new_slot_P: Tensor) -> Segments:
    """The same for fewer looking rows.

    Args:
        new_slot_P: int64, for each padded slot its place among the rows that still look; -1 for none.
    """
    device, new_slot_P = new_slot_P.device, new_slot_P.cpu()
    fewer: list[Group] = []
    for group in segments.groups:
        slot_nq = new_slot_P[group.query_nq]
        patterns, which_n = torch.unique(slot_nq >= 0, dim=0, return_inverse=True)
        for number, wanted_q in enumerate(patterns):
            if wanted_q.any():
                members = which_n == number
                seen_qk = None if group.seen_qk is None else group.seen_qk.cpu()[wanted_q]
                fewer.append(
                    Group(
                        query_nq=slot_nq[members][:, wanted_q], key_nk=group.key_nk[members], seen_qk=seen_qk
                    )
                )
    return Segments.of(fewer, device)


def attend_segments(
    q_BhLd: Float[Tensor, "B h L d"],
    k_BkKd: Float[Tensor, "B kv K d"],
    v_BkKd: Float[Tensor, "B kv K d"],
    segments: Segments,
) -> Float[Tensor, "B h L d"]:
    """Grouped-query attention, group by group; rows of padding are zero."""
    batch, num_heads, length, size = q_BhLd.shape
    q_Qhd = _slots_first(q_BhLd).index_select(0, segments.query_Q)
    k_Jkd, v_Jkd = (_slots_first(x).index_select(0, segments.key_J) for x in (k_BkKd, v_BkKd))
    num_queries = [group.query_nq.numel() for group in segments.groups]
    num_keys = [group.key_nk.numel() for group in segments.groups]
    parts = (q_Qhd.split(num_queries), k_Jkd.split(num_keys), v_Jkd.split(num_keys), segments.groups)
    outs: list[Tensor] = []
    for q, k, v, group in zip(*parts, strict=True):
        q, k, v = (x.unflatten(0, (len(group.query_nq), -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.seen_qk, enable_gqa=True)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    result = q_Qhd.new_zeros(batch * length, num_heads, size).index_copy(0, segments.query_Q, torch.cat(outs))
    return result.unflatten(0, (batch, length)).transpose(1, 2)


def _slots_first(x_BhLd: Tensor) -> Tensor:
    return x_BhLd.transpose(1, 2).flatten(0, 1)
