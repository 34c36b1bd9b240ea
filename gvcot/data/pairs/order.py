"""In which order a dataset is read. An order is a permutation of indices, known before anything is read: a
position in it is all that there is to remember.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np


def epoch_order(shards: Sequence[int], seed: int, epoch: int, buffer: int = 0) -> np.ndarray:
    """The order of one epoch, int64 of as many entries as there are samples.

    Args:
        shards: number of samples of each part of the dataset, in the order of their indices.
        seed, epoch: another one is another order.
        buffer: 0, any order is as likely as another. Else the parts are shuffled and laid end to end, and
            their samples go through a shuffle buffer of so many places: what is read next never lies further
            ahead than the buffer is long.
    """
    rng = np.random.default_rng([seed, epoch])
    total = sum(shards)
    if not buffer:
        return rng.permutation(total)
    starts = [0, *accumulate(shards)]
    row = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in rng.permutation(len(shards))])
    held, coming = row[:buffer].copy(), row[buffer:]
    out = np.empty_like(row)
    for i, (place, index) in enumerate(zip(rng.integers(len(held), size=len(coming)), coming, strict=True)):
        out[i], held[place] = held[place], index
    out[len(coming) :] = rng.permutation(held)
    return out
