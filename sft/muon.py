"""Muon: matrices between hidden layers move by orthogonalised momentum, everything else by AdamW.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scale that makes
its steps as large as AdamW's is that of Liu et al. (arXiv 2502.16982, section 2.2). torch.optim.Muon is not
used because it orthogonalises in bfloat16, which a CPU without such units emulates (seconds a step for the
tiny model), and matrix by matrix; here it is done in the weights' own type, equal shapes at once.

Legend: B matrices of one shape, M rows, N columns of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gvcot import distributed

MOMENTUM = 0.95
ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients whose iteration takes every singular value to somewhere near 1, and small ones there fast."""

RMS = 0.2
"""Root mean square of an update at learning rate 1, which is about AdamW's."""


class Muon(torch.optim.AdamW):
    """AdamW, except for groups with `orthogonal=True`, whose parameters are all matrices.

    Workers with replicated parameters share the work of a step, which is *collective*.

    Example:
        Muon(groups(dict(model.named_parameters()), lr=1e-3, matrix_lr=4e-3), lr=1e-3)
    """

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        everything = self.param_groups
        self.param_groups = [group for group in everything if not group["orthogonal"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = everything
        for group in everything:
            if group["orthogonal"]:
                self._move(group)
        return loss

    def _move(self, group: Mapping[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        for shape, alike in groupby(sorted(parameters, key=lambda p: p.shape), key=lambda p: p.shape):
            matrices = list(alike)
            directions = torch.stack([self._ahead(p) for p in matrices])
            mine = directions[distributed.rank() :: distributed.world_size()]
            directions = distributed.interleaved(orthogonalized(mine), len(matrices))
            scale = RMS * max(shape) ** 0.5
            for parameter, direction in zip(matrices, directions, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"] * scale)

    def _ahead(self, parameter: Tensor) -> Tensor:
        """Nesterov's momentum: the average gradient, a step ahead."""
        assert parameter.grad is not None
        slots = self.state[parameter]
        if "momentum" not in slots:
            slots["momentum"] = torch.zeros_like(parameter)
        average = slots["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(average, MOMENTUM)


def orthogonalized(matrices: Float[Tensor, "B M N"]) -> Float[Tensor, "B M N"]:
    """Each matrix with its singular values brought near 1 (about .7 to 1.2) by a Newton-Schulz iteration."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def groups(parameters: Mapping[str, nn.Parameter], lr: float, matrix_lr: float) -> Iterable[dict[str, Any]]:
    """Parameter groups for `Muon`: the matrices of decoder and ViT layers, and the rest.

    Embeddings, projections from and to other spaces, and the head are not hidden layers.
    """
    inner = {name for name, p in parameters.items() if p.ndim == 2 and "layers." in name}
    yield {
        "params": [p for name, p in parameters.items() if name in inner],
        "lr": matrix_lr,
        "orthogonal": True,
    }
    yield {
        "params": [p for name, p in parameters.items() if name not in inner],
        "lr": lr,
        "orthogonal": False,
    }
