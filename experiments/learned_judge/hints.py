"""What the judge is told beside the scores while it learns: where, how much and how well.

A score is a few bits about two pictures and a sentence. The world knows more: what was meant, where pictures
differ and by how much, and the measures a score is made of. Small heads that are not part of the judge, and
are not exported, predict them from its last hidden states while it learns.

Legend: B rows, N edits, Q expressions, C pieces of an image, F facts, M measures, H W pixels, W hidden size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.learned_judge.packing import Packed


class Hints(nn.Module):
    """Heads on the judge's last hidden states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        """From the end of an expression, to be compared with the pieces of the picture before."""

        self.facts = nn.Linear(width, NUM_FACTS)
        """From a piece of the picture after."""

        self.measures = nn.Linear(width, 3)
        """From where SC is answered: place, accuracy, preservation."""

    def pointing(self, states: Tensor, packed: Packed, meant_NC: Tensor, expression_QC: Tensor) -> Tensor:
        """Cross entropy of where things are that instructions and expressions mean, mean over both.

        Args:
            states: last hidden states (B * T, W).
            packed: where in them things are.
            meant_NC, expression_QC: distributions over the pieces.
        """
        places = torch.cat([packed.meant_N, packed.expression_Q])
        rows = torch.cat([packed.row_N, packed.row_Q])
        before_BCW = states[packed.before_BC]
        score_XC = torch.einsum("xw,xcw->xc", self.query(states[places]), before_BCW[rows])
        return F.cross_entropy(score_XC / states.shape[-1] ** 0.5, torch.cat([meant_NC, expression_QC]))

    def seeing(self, states: Tensor, packed: Packed, facts_NCF: Tensor) -> Tensor:
        """Mean squared error of the facts of each piece."""
        return F.mse_loss(self.facts(states[packed.after_NC]), facts_NCF)

    def measuring(self, states: Tensor, packed: Packed, measures_NM: Tensor) -> Tensor:
        """Mean squared error of the measures."""
        return F.mse_loss(self.measures(states[packed.answer_N2[:, 0]]), measures_NM)


NUM_FACTS = 2


def facts(before_NHW3: np.ndarray, after_NHW3: np.ndarray, side: int) -> Tensor:
    """Of each piece of the picture after, about 0 to 1: how much it changed, and how rough it is.

    The change is log(1 + 50 d) / 4 with the mean absolute difference d as a share of the pixel range;
    roughness is of the same form, with the root mean squared difference of neighbouring pixels.
    """
    before, after = (x.astype(np.float32) / 255 for x in (before_NHW3, after_NHW3))
    change_NHW = np.abs(after - before).mean(-1)
    steps_NHW = np.zeros_like(change_NHW)
    for axis in (1, 2):
        steps_NHW += np.square(np.diff(after, axis=axis, append=np.take(after, [-1], axis=axis))).mean(-1) / 2
    values = [per_piece(change_NHW, side), np.sqrt(per_piece(steps_NHW, side))]
    return torch.from_numpy(np.log1p(50 * np.stack(values, axis=-1)) / 4)


def per_piece(value_NHW: np.ndarray, side: int) -> np.ndarray:
    """Means over the pieces of images, (N, C)."""
    num, height, width = value_NHW.shape
    split = value_NHW.reshape(num, side, height // side, side, width // side)
    return split.mean(axis=(2, 4)).reshape(num, -1)


def where_meant(mask_NHW: np.ndarray, side: int) -> Tensor:
    """Masks that are not empty as distributions over pieces, float32 (N, C)."""
    share_NC = per_piece(mask_NHW.astype(np.float32), side)
    return torch.from_numpy(share_NC / share_NC.sum(axis=1, keepdims=True))


def where_point(points_Q2: np.ndarray, side: int) -> Tensor:
    """Points (x, y) in 32nds of the image as distributions over pieces, float32 (Q, C)."""
    x_Q, y_Q = points_Q2.T * side // 32
    return F.one_hot(torch.from_numpy(y_Q * side + x_Q), side**2).float()
