"""Flow matching in BAGEL's convention, as pure functions.

t = 1 is noise, t = 0 is clean; x_t = (1 - t) * x0 + t * eps; the network predicts v = eps - x0; a
sampling step from t to a smaller s is x <- x - v * (t - s).

Legend: B images, N latent tokens, D values per token, C channels, H W latent rows and columns, S steps.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gvcot.types import Renorm


def shift_time(t: Tensor, shift: float) -> Tensor:
    """s*t / (1 + (s - 1)*t): keeps 0 and 1 exactly, moves the rest towards noise for s > 1."""
    return shift * t / (shift * t + (1 - t))


def sigma_schedule(num_steps: int, shift: float) -> Tensor:
    """Noise levels of `num_steps` sampling steps: fp32 (num_steps + 1,), from 1 to 0."""
    return shift_time(torch.linspace(1, 0, num_steps + 1), shift)


def interpolate(
    x0: Float[Tensor, " B *dims"], eps: Float[Tensor, " B *dims"], t: Float[Tensor, " B"]
) -> Float[Tensor, " B *dims"]:
    """x_t = (1 - t) * x0 + t * eps, one time per image."""
    t = t.reshape(-1, *[1] * (x0.ndim - 1)).to(x0.dtype)
    return (1 - t) * x0 + t * eps


def velocity_target(x0: Tensor, eps: Tensor) -> Tensor:
    """v = eps - x0."""
    return eps - x0


def sample_train_t(n: int, shift: float, generator: torch.Generator | None = None) -> Float[Tensor, " n"]:
    """Training times: a standard normal through the logistic function, then shifted. fp32 (n,)."""
    return shift_time(torch.sigmoid(torch.randn(n, generator=generator)), shift)


def patchify(latent_BCHW: Float[Tensor, "B C H W"], patch: int) -> Float[Tensor, "B N D"]:
    """Latents to tokens in row-major order; a token is [row in patch][column in patch][channel]."""
    B, C, H, W = latent_BCHW.shape
    blocks = latent_BCHW.reshape(B, C, H // patch, patch, W // patch, patch)
    return blocks.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // patch) * (W // patch), patch * patch * C)


def unpatchify(
    tokens_BND: Float[Tensor, "B N D"], grid: tuple[int, int], patch: int
) -> Float[Tensor, "B C H W"]:
    """The inverse of `patchify` for a grid of (rows, columns) tokens."""
    rows, cols = grid
    B, _, D = tokens_BND.shape
    C = D // patch**2
    blocks = tokens_BND.reshape(B, rows, cols, patch, patch, C)
    return blocks.permute(0, 5, 1, 3, 2, 4).reshape(B, C, rows * patch, cols * patch)


def cfg_active(t_B: Float[Tensor, " B"], interval: tuple[float, float]) -> Bool[Tensor, " B"]:
    """Whether guidance holds at times t: lo < t <= hi."""
    return (interval[0] < t_B) & (t_B <= interval[1])


def cfg_combine(
    v_full: Float[Tensor, "B N D"],
    v_no_text: Float[Tensor, "B N D"],
    v_no_image: Float[Tensor, "B N D"] | None = None,
    *,
    text_scale: float,
    image_scale: float = 1.0,
    renorm: Renorm = "global",
    renorm_min: float = 0.0,
) -> Float[Tensor, "B N D"]:
    """Classifier-free guidance over text, then over the image, renormalised per sample.

        a = v_no_text + s_T * (v_full - v_no_text);  b = v_no_image + s_I * (a - v_no_image)

    "global" scales b by |v_full| / |b| over a sample's tokens and values, "channel" does so per token,
    "text_channel" scales a per token before b is formed; the factor is clamped to [renorm_min, 1].
    BAGEL skips guidance altogether at text_scale 1; here image guidance then still holds.

    Args:
        v_no_image: velocity without the image; may be None when image_scale is 1 (then b = a).
        renorm_min: smallest factor of the renormalisation, in [0, 1].
    """
    guided = v_no_text + text_scale * (v_full - v_no_text)
    if renorm == "text_channel":
        guided = guided * _shrink(v_full, guided, (-1,), renorm_min)
    if v_no_image is not None and image_scale != 1.0:
        guided = v_no_image + image_scale * (guided - v_no_image)
    if renorm == "global":
        guided = guided * _shrink(v_full, guided, (-2, -1), renorm_min)
    if renorm == "channel":
        guided = guided * _shrink(v_full, guided, (-1,), renorm_min)
    return guided


def _shrink(reference: Tensor, guided: Tensor, dims: tuple[int, ...], smallest: float) -> Tensor:
    norm = torch.linalg.vector_norm(reference, dim=dims, keepdim=True)
    guided_norm = torch.linalg.vector_norm(guided, dim=dims, keepdim=True)
    return (norm / (guided_norm + 1e-8)).clamp(smallest, 1.0)
