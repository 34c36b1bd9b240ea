"""Seeds derived from what a random draw is *for* (run, step, prompt, sample, phase), never from who draws it.

Every worker count therefore draws the same noise, and a resumed run continues the stream it left. Dimension
suffixes: B rows, N latent tokens, D values per token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(*parts: int | str) -> int:
    """A stable 63-bit seed from a path of integers and strings: `derive(run_seed, step, "window")`.

    The same parts give the same seed in every process and on every machine (unlike `hash`).
    """
    plain = tuple(part if isinstance(part, str) else int(part) for part in parts)  # numpy integers too
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A fresh CPU generator seeded with `derive(*parts)`."""
    import torch

    return torch.Generator().manual_seed(derive(*parts))


def noise_BND(seeds: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise, one generator per row.

    Args:
        seeds: B seeds, one per row.
        shape: of one row, (N, D).

    Returns:
        fp32 CPU tensor (B, N, D); row i depends on `seeds[i]` only.
    """
    import torch

    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty((0, *shape))
