"""The SigLIP NaViT encoder: images of any size, patches as rows of a matrix, learned positions.

Legend: I images of one size, N patches per image, p patch side, hidden the encoder's width.
Module names are BAGEL's. The last layer of the published encoder is not used; `config.layers` counts
what is built, and `post_layernorm` follows it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gvcot.model.config import ViTConfig


def patch_pixels(pixels_I3HW: Float[Tensor, "I 3 H W"], patch: int) -> Float[Tensor, "I N p_p_3"]:
    """Row-major patches; a patch is [row][column][channel]."""
    num_images, C, H, W = pixels_I3HW.shape
    blocks = pixels_I3HW.reshape(num_images, C, H // patch, patch, W // patch, patch)
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class ViTAttention(nn.Module):
    """Full attention within each image."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.k_proj = nn.Linear(config.hidden, config.hidden)
        self.v_proj = nn.Linear(config.hidden, config.hidden)
        self.q_proj = nn.Linear(config.hidden, config.hidden)
        self.out_proj = nn.Linear(config.hidden, config.hidden)

    def forward(self, x_INd: Tensor) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        out = F.scaled_dot_product_attention(
            heads(self.q_proj(x_INd)), heads(self.k_proj(x_INd)), heads(self.v_proj(x_INd))
        )
        return self.out_proj(out.transpose(1, 2).flatten(2))


class GeluMLP(nn.Module):
    """fc2(gelu_tanh(fc1(x))): the ViT's MLP, and BAGEL's connector from ViT to decoder."""

    def __init__(self, dim_in: int, inner: int, dim_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim_in, inner)
        self.fc2 = nn.Linear(inner, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class ViTLayer(nn.Module):
    """Pre-norm encoder layer."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.self_attn = ViTAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden, eps=config.ln_eps)
        self.mlp = GeluMLP(config.hidden, config.mlp, config.hidden)
        self.layer_norm2 = nn.LayerNorm(config.hidden, eps=config.ln_eps)

    def forward(self, x_INd: Tensor) -> Tensor:
        x_INd = x_INd + self.self_attn(self.layer_norm1(x_INd))
        return x_INd + self.mlp(self.layer_norm2(x_INd))


class ViTEmbeddings(nn.Module):
    """Patches through a matrix, plus a learned position row."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.position_embedding = nn.Embedding(config.max_side**2, config.hidden)
        self.patch_embedding = nn.Linear(config.patch**2 * 3, config.hidden)

    def forward(self, pixels_I3HW: Tensor, rows_N: Tensor) -> Tensor:
        patches = patch_pixels(pixels_I3HW, self.patch).to(self.patch_embedding.weight.dtype)
        return self.patch_embedding(patches) + self.position_embedding(rows_N)


class ViTEncoder(nn.Module):
    """The stack of layers."""

    recompute: bool = False
    """Whether layers are computed again in the backward pass instead of kept (activation checkpointing)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ViTLayer(config) for _ in range(config.layers)])

    def forward(self, x_INd: Tensor) -> Tensor:
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x_INd = checkpoint(layer, x_INd, use_reentrant=False, preserve_rng_state=False)
            else:
                x_INd = layer(x_INd)
        return x_INd


class VisionTransformer(nn.Module):
    """Embeddings, layers, post_layernorm."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.embeddings = ViTEmbeddings(config)
        self.encoder = ViTEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden, eps=config.ln_eps)

    def forward(self, pixels_I3HW: Tensor, rows_N: Tensor) -> Tensor:
        return self.post_layernorm(self.encoder(self.embeddings(pixels_I3HW, rows_N)))


class SigLIP(nn.Module):
    """Pixels (I, 3, H, W) in [-1, 1] of equally large images, and the N rows of their patches in the
    position table, to features (I, N, hidden)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config)

    def forward(
        self, pixels_I3HW: Float[Tensor, "I 3 H W"], rows_N: Int[Tensor, " N"]
    ) -> Float[Tensor, "I N hidden"]:
        return self.vision_model(pixels_I3HW, rows_N)
