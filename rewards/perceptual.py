"""How like the source the edit looks outside the change mask: PSNR, SSIM and LPIPS.

All compare with the source's codec round trip and use the *ground-truth* change mask; what lies inside it has
no influence at all. Missing where the change mask is unknown or covers the whole image.

Dimension legend: B chains, H W pixels. Images are float in [-1, 1].
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gvcot.errors import ConfigError
from gvcot.torchvision_cpu import declare_missing_operators
from gvcot.types import RewardResult
from rewards.base import Reward, RewardBatch, result
from rewards.fidelity import MAX_PSNR_DB, outside, psnr_db, rmse_inside

SIGMA = 1.5
"""Of the Gaussian window of SSIM, in pixels (the paper's)."""

RADIUS = 5
"""The window of SSIM reaches this many pixels from its centre (11 x 11, the paper's)."""

C1, C2 = 0.01**2, 0.03**2
"""Constants of SSIM for the pixel range [0, 1]."""

ALEXNET = "alexnet-owt-7be5be79.pth"
"""torchvision's file of the AlexNet whose features LPIPS compares."""


class Psnr(Reward):
    """Peak signal-to-noise ratio outside the change mask, as a share of `ceiling_db`, in [0, 1].

        score = min(PSNR, ceiling_db) / ceiling_db,     PSNR = -20 log10(rmse) dB

    with the rmse over outside pixels and RGB as a share of the pixel range. Unlike `preservation`, which
    measures the same error, it keeps telling small errors apart: 20 to 25 dB counts as much as 40 to 45.
    Part: `db`.
    """

    name = "psnr"
    requires = frozenset({"x_edit", "change_mask"})
    reaches = "x_edit"

    def __init__(self, ceiling_db: float = MAX_PSNR_DB) -> None:
        """`ceiling_db`: the PSNR that scores 1.

        Raises:
            ConfigError: a ceiling outside (0, 60].
        """
        if not 0 < ceiling_db <= MAX_PSNR_DB:
            raise ConfigError(
                f"reward {self.name}: ceiling_db is {ceiling_db}, expected a number in (0, {MAX_PSNR_DB:g}]"
            )
        self.ceiling_db = ceiling_db

    def score(self, batch: RewardBatch) -> RewardResult:
        outside_BHW, valid_B = outside(batch)
        rmse_B = rmse_inside(batch.image("x_edit"), batch.source_rt_B3HW.float(), outside_BHW)
        db_B = psnr_db(rmse_B)
        return result((db_B / self.ceiling_db).clamp(0.0, 1.0), valid_B, db=db_B)


class Ssim(Reward):
    """Structural similarity to the source, mean over the pixels outside the change mask, in [-1, 1].

    Wang et al. 2004, with their Gaussian window of 11 pixels, for each channel and then averaged. The inside
    of the change mask is replaced by the source first, so that no window sees it. Unlike a pixel error it
    forgives a change of brightness and punishes blur and noise.
    """

    name = "ssim"
    requires = frozenset({"x_edit", "change_mask"})
    reaches = "x_edit"

    def score(self, batch: RewardBatch) -> RewardResult:
        outside_BHW, valid_B = outside(batch)
        ssim_BHW = ssim_map(source_inside(batch, outside_BHW), batch.source_rt_B3HW.float())
        total_B = (ssim_BHW * outside_BHW).sum(dim=(1, 2))
        return result(total_B / outside_BHW.sum(dim=(1, 2)).clamp_min(1), valid_B)


class Lpips(Reward):
    """1 - LPIPS(edit, source) with the inside of the change mask replaced by the source: 1 is alike.

    LPIPS (Zhang et al. 2018, arXiv 1801.03924, version 0.1 on AlexNet) is a distance of deep features that
    agrees with people better than pixel errors do; it is rarely above 1. The network is that of the package
    `lpips`, with torchvision's weights; nothing is ever downloaded.
    """

    name = "lpips"
    requires = frozenset({"x_edit", "change_mask"})
    reaches = "x_edit"

    def __init__(self) -> None:
        """Raises:
        ConfigError: the package or the weights of its network are not on this machine.
        """
        self._distance = _lpips_network(self.name)

    @torch.no_grad()
    def score(self, batch: RewardBatch) -> RewardResult:
        outside_BHW, valid_B = outside(batch)
        source_B3HW = batch.source_rt_B3HW.float()
        network = self._distance.to(source_B3HW.device)
        return result(1 - network(source_inside(batch, outside_BHW), source_B3HW).flatten(), valid_B)


def source_inside(batch: RewardBatch, outside_BHW: Tensor) -> Tensor:
    """The edits (B, 3, H, W), with the source in place of all that may change."""
    return torch.where(outside_BHW[:, None], batch.image("x_edit"), batch.source_rt_B3HW.float())


def ssim_map(one_B3HW: Tensor, other_B3HW: Tensor) -> Tensor:
    """SSIM around each pixel, mean over RGB, fp32 (B, H, W).

        SSIM = (2 mu_a mu_b + C1) (2 cov_ab + C2) / ((mu_a^2 + mu_b^2 + C1) (var_a + var_b + C2))

    with means, variances and covariance over a Gaussian window; images are mirrored at their edges. This is
    scikit-image's `structural_similarity` with `gaussian_weights=True, use_sample_covariance=False`.

    Args:
        one_B3HW, other_B3HW: images in [-1, 1], at least 5 pixels a side.
    """
    # The luminance term means something for brightness from 0 up only.
    one_B3HW, other_B3HW = (one_B3HW.float() + 1) / 2, (other_B3HW.float() + 1) / 2
    mean_B3HW, other_mean_B3HW = _blur(one_B3HW), _blur(other_B3HW)
    variances_B3HW = (
        _blur(one_B3HW.square()) + _blur(other_B3HW.square()) - mean_B3HW.square() - other_mean_B3HW.square()
    )
    covariance_B3HW = _blur(one_B3HW * other_B3HW) - mean_B3HW * other_mean_B3HW
    luminance_B3HW = (2 * mean_B3HW * other_mean_B3HW + C1) / (
        mean_B3HW.square() + other_mean_B3HW.square() + C1
    )
    return (luminance_B3HW * (2 * covariance_B3HW + C2) / (variances_B3HW + C2)).mean(dim=1)


def _blur(image_B3HW: Tensor) -> Tensor:
    """The image under a Gaussian window, mirrored at its edges (edge pixels twice)."""
    offset = torch.arange(-RADIUS, RADIUS + 1, device=image_B3HW.device)
    kernel = torch.exp(-0.5 * (offset / SIGMA).square())
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    rows, columns = (_mirrored(length, image_B3HW.device) for length in image_B3HW.shape[2:])
    padded = image_B3HW[:, :, rows][..., columns]
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def _mirrored(length: int, device: torch.device) -> Tensor:
    """Indices of a line of pixels that is continued by RADIUS mirrored pixels at both ends."""
    index = torch.arange(-RADIUS, length + RADIUS, device=device)
    index = torch.where(index < 0, -1 - index, index)
    return torch.where(index >= length, 2 * length - 1 - index, index)


def _lpips_network(reward: str) -> Any:
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    instead = "or use the reward ssim, which needs no weights"
    if importlib.util.find_spec("lpips") is None:
        raise ConfigError(
            f"reward {reward}: the package lpips is not installed; run `pip install lpips`, {instead}"
        )
    if not weights.is_file():
        raise ConfigError(
            f"reward {reward}: the AlexNet whose features it compares is not at {weights}; put "
            f"https://download.pytorch.org/models/{ALEXNET} there, {instead}"
        )
    declare_missing_operators()
    network = importlib.import_module("lpips").LPIPS(net="alex", verbose=False)
    return network.eval().requires_grad_(False)
