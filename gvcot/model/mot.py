"""The Mixture-of-Transformers decoder: two experts per layer, one joint attention.

Text, boundary and ViT tokens use the understanding expert, latent tokens the generation expert (the
`*_moe_gen` modules). The experts' tokens are kept as two streams of rows, x_U (U, hidden) and x_G
(G, hidden), so that norms, projections and MLPs need no indexing; only attention joins them.
Module names are BAGEL's, because checkpoints are keyed by them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gvcot.model.attention import AttnSpec, apply_rope, attend, join_streams, narrow, split_streams
from gvcot.model.config import LLMConfig

KV = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoTAttention(nn.Module):
    """Projections and query/key norms per expert, attention over all tokens of a sample."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        kv_dim = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, config.hidden)
        self.k_proj = nn.Linear(config.hidden, kv_dim)
        self.v_proj = nn.Linear(config.hidden, kv_dim)
        self.o_proj = nn.Linear(config.hidden, config.hidden, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_eps)
        self.q_norm_moe_gen = RMSNorm(config.head_dim, config.rms_eps)
        self.k_norm_moe_gen = RMSNorm(config.head_dim, config.rms_eps)
        self.q_proj_moe_gen = nn.Linear(config.hidden, config.hidden)
        self.k_proj_moe_gen = nn.Linear(config.hidden, kv_dim)
        self.v_proj_moe_gen = nn.Linear(config.hidden, kv_dim)
        self.o_proj_moe_gen = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(
        self, x_U: Tensor, x_G: Tensor, spec: AttnSpec, past: KV | None
    ) -> tuple[Tensor, Tensor, KV | None]:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (-1, self.head_dim))

        query_U, query_G = spec.looking(x_U, x_G)
        q_BLhd = join_streams(
            self.q_norm(heads(self.q_proj(query_U))),
            self.q_norm_moe_gen(heads(self.q_proj_moe_gen(query_G))),
            spec.queries,
        )
        kv_BLhd = join_streams(
            torch.cat([self.k_norm(heads(self.k_proj(x_U))), heads(self.v_proj(x_U))], 1),
            torch.cat(
                [self.k_norm_moe_gen(heads(self.k_proj_moe_gen(x_G))), heads(self.v_proj_moe_gen(x_G))], 1
            ),
            spec.keys,
        )
        k_BLkd, v_BLkd = kv_BLhd.split(self.kv_heads, dim=2)
        q = apply_rope(q_BLhd, spec.queries).transpose(1, 2)
        k = apply_rope(k_BLkd, spec.keys).transpose(1, 2)
        v = v_BLkd.transpose(1, 2)
        keys, values = (k, v) if past is None else (torch.cat([past[0], k], 2), torch.cat([past[1], v], 2))
        out_BLh = attend(q, keys, values, spec).transpose(1, 2).flatten(2)
        out_U, out_G = split_streams(out_BLh, spec.queries)
        return self.o_proj(out_U), self.o_proj_moe_gen(out_G), (k, v) if spec.cached else None


class MoTLayer(nn.Module):
    """Pre-norm decoder layer on two streams; returns the rows that look, and keys and values to cache."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.self_attn = MoTAttention(config)
        self.mlp = SwiGLU(config.hidden, config.mlp)
        self.mlp_moe_gen = SwiGLU(config.hidden, config.mlp)
        self.input_layernorm = RMSNorm(config.hidden, config.rms_eps)
        self.input_layernorm_moe_gen = RMSNorm(config.hidden, config.rms_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.rms_eps)
        self.post_attention_layernorm_moe_gen = RMSNorm(config.hidden, config.rms_eps)

    def forward(
        self, x_U: Tensor, x_G: Tensor, spec: AttnSpec, past: KV | None = None
    ) -> tuple[Tensor, Tensor, KV | None]:
        out_U, out_G, kv = self.self_attn(
            self.input_layernorm(x_U), self.input_layernorm_moe_gen(x_G), spec, past
        )
        x_U, x_G = spec.looking(x_U, x_G)
        x_U = x_U + out_U
        x_G = x_G + out_G
        x_U = x_U + self.mlp(self.post_attention_layernorm(x_U))
        x_G = x_G + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(x_G))
        return x_U, x_G, kv


class MoTBackbone(nn.Module):
    """Token embedding, the decoder layers and the two final norms."""

    recompute: bool = False
    """Whether layers are computed again in the backward pass instead of kept (activation checkpointing)."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList([MoTLayer(config) for _ in range(config.layers)])
        self.norm = RMSNorm(config.hidden, config.rms_eps)
        self.norm_moe_gen = RMSNorm(config.hidden, config.rms_eps)

    def forward(
        self,
        x_U: Tensor,
        x_G: Tensor,
        spec: AttnSpec,
        wanted: tuple[Tensor, Tensor],
        past: list[KV | None] | None = None,
    ) -> tuple[Tensor, Tensor, list[KV]]:
        """Run the layers.

        Args:
            wanted: int64 (understanding, latent), the rows whose result is read; the last layer computes
                no others.

        Returns:
            The wanted rows before the final norms, and every layer's new keys and values (none without a
            cache).
        """
        new_kv: list[KV] = []
        for index, layer in enumerate(self.layers):
            if index == len(self.layers) - 1:
                spec = narrow(spec, *wanted)
            layer_past = None if past is None else past[index]
            if self.recompute and torch.is_grad_enabled():
                # nothing in a layer is random
                x_U, x_G, kv = checkpoint(
                    layer, x_U, x_G, spec, layer_past, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x_U, x_G, kv = layer(x_U, x_G, spec, layer_past)
            if kv is not None:
                new_kv.append(kv)
        return x_U, x_G, new_kv


class LanguageModel(nn.Module):
    """The decoder and its untied output head, under the names `model` and `lm_head`."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.model = MoTBackbone(config)
        self.lm_head = nn.Linear(config.hidden, config.vocab, bias=False)
