"""An exponential moving average of trained weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class EMA:
    """Averages weights with a decay that warms up: min(decay, (1 + k) / (10 + k)) at update k."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        """
        Args:
            weights: what is averaged; copied.
            decay: of the average once it is warm, in [0, 1).
        """
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: w.detach().clone() for name, w in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Move the average towards the current weights."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        names = list(self.weights)
        averages, now = [self.weights[n] for n in names], [weights[n].detach() for n in names]
        torch._foreach_lerp_(averages, now, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.num_updates += 1
