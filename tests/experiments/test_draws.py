"""Several images per scene: their mean, and the best of them."""

from __future__ import annotations

import math

import torch

from experiments.evaluate import mean_of_draws
from rl.probes import Evaluation


def test_values_are_means_over_draws_that_have_one_and_the_best_of_them() -> None:
    first = Evaluation(values={"mask_iou": torch.tensor([0.2, math.nan, math.nan])})
    second = Evaluation(values={"mask_iou": torch.tensor([0.6, 0.5, math.nan])})
    out = mean_of_draws([first, second]).values
    torch.testing.assert_close(out["mask_iou"], torch.tensor([0.4, 0.5, math.nan]), equal_nan=True)
    torch.testing.assert_close(out["best/mask_iou"], torch.tensor([0.6, 0.5, math.nan]), equal_nan=True)


def test_a_single_draw_is_left_as_it_is() -> None:
    only = Evaluation(values={"mask_iou": torch.tensor([0.2, math.nan])})
    assert list(mean_of_draws([only]).values) == ["mask_iou"]
