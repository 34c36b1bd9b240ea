"""Reading a dataset: samples that fit the run, in a seeded order, with the bad ones left out and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gvcot.data.pairs.config import PairsConfig
from gvcot.data.pairs.containers import open_container
from gvcot.data.pairs.order import epoch_order
from gvcot.data.pairs.record import VERSION, Fit, SampleError, decode
from gvcot.data.scenes import TASKS
from gvcot.errors import DataError
from gvcot.types import EditSample

SURE = 100
"""Samples that must have been read before a share of bad ones says something."""

SHOWN = 5
"""Bad samples that an error names."""


class Bad(NamedTuple):
    """A sample that can't be used."""

    id: str
    kind: str
    """What bad samples are counted by, such as "undecodable_image"."""

    reason: str


class PairDataset:
    """Samples by index, as a run takes them. Remembers which were bad."""

    def __init__(self, config: PairsConfig, *, size: int | None, need_target: bool) -> None:
        """
        Args:
            config: which dataset.
            size: pixels per side that the run takes; None: images stay as they are.
            need_target: whether samples without a target are bad.

        Raises:
            DataError: there is no such dataset.
            ConfigError: its kind is unknown.
        """
        self.config = config
        self._container = open_container(config.path, config.kind)
        shards, buffer = self._container.shards, config.buffer if self._container.sequential else 0
        self._order = lru_cache(2)(lambda seed, epoch: epoch_order(shards, seed, epoch, buffer))
        self._fit = Fit(
            size=size,
            resize=config.resize,
            tasks=frozenset(TASKS) | frozenset(config.tasks),
            need_target=need_target,
        )
        self._seen: set[int] = set()
        self.bad: dict[int, Bad] = {}
        """By index."""

    def __len__(self) -> int:
        """Samples, bad ones included."""
        return len(self._container)

    def sample(self, index: int) -> EditSample | None:
        """The sample at an index; None where it is bad.

        Raises:
            DataError: too many of the samples read so far are bad.
        """
        found = None if index in self.bad else self._read(index)
        self._seen.add(index)
        self._check()
        return found

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The indices of an epoch; see `epoch_order`."""
        return self._order(seed, epoch)

    def version(self, num: int) -> str:
        """What changes when one of the first `num` samples, or how they are made to fit, does."""
        settings = (VERSION, self._fit.size, self._fit.resize, sorted(self._fit.tasks))
        return repr((settings, list(self._container.stamps(num))))

    def _read(self, index: int) -> EditSample | None:
        name = self._container.place(index)
        try:
            raw = self._container.read(index)
            name = str(raw.record.get("id", name))
            return decode(raw, self._fit)
        except SampleError as error:
            self.bad[index] = Bad(name, error.kind, error.message)
            return None

    def _check(self) -> None:
        if len(self._seen) >= min(SURE, len(self)):
            check_share(self.config, list(self.bad.values()), len(self._seen))

    def account(self) -> str:
        """Bad samples by kind, and the first ones by id."""
        return account(list(self.bad.values()))


def check_share(config: PairsConfig, bad: Sequence[Bad], num: int) -> None:
    """Raises DataError where more of `num` samples are bad than the configuration allows."""
    if len(bad) > config.max_bad_share * num:
        raise DataError(
            f"{config.path}: {len(bad)} of {num} samples are bad, at most {config.max_bad_share:.1%} may be "
            f"(max_bad_share): {account(bad)}. See them all with `gvcot data check {config.path}`"
        )


def account(bad: Sequence[Bad]) -> str:
    """Bad samples by kind, and the first ones by id."""
    kinds = Counter(one.kind for one in bad)
    first = [f"{one.id} ({one.kind}: {one.reason})" for one in bad[:SHOWN]]
    return f"{', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}; such as {'; '.join(first)}"


class PairReader:
    """The good samples of a dataset without end, each once per epoch: an iterator that says where it is.

    Epochs lie end to end. Several ranks deal the positions out in turn, so that no two of them get the same
    sample of an epoch and none is lost.

    Example:
        reader = PairReader(dataset, seed=0)
        first = next(reader)
        rest = PairReader(dataset, seed=0, position=reader.position)   # goes on after it
    """

    def __init__(
        self, dataset: PairDataset, *, seed: int, rank: int = 0, world_size: int = 1, position: int = 0
    ) -> None:
        """
        Args:
            dataset: where samples come from.
            seed: of the orders.
            rank, world_size: which share is this reader's.
            position: where to go on, as this rank's reader said. For another number of ranks: the smallest
                that any of them said, which repeats no more than the ranks that met more bad ones were ahead.
        """
        self._dataset, self._seed = dataset, seed
        self._step = world_size
        self.position = position + (rank - position) % world_size
        """Of the next sample that this rank tries, counted over all ranks and epochs."""

    def __iter__(self) -> Iterator[EditSample]:
        return self

    def __next__(self) -> EditSample:
        """The next good sample of this rank.

        Raises:
            DataError: a whole epoch long there is none, or too many are bad.
        """
        for _ in range(len(self._dataset)):
            epoch, offset = divmod(self.position, len(self._dataset))
            self.position += self._step
            sample = self._dataset.sample(int(self._dataset.order(self._seed, epoch)[offset]))
            if sample is not None:
                return sample
        raise DataError(f"{self._dataset.config.path} has no good sample: {self._dataset.account()}")


class Prompts:
    """A dataset as a stream of prompts by index: its epochs end to end. What stands at an index is the same
    in every process: a bad sample gives its place to the next good one of its epoch."""

    def __init__(self, dataset: PairDataset, seed: int) -> None:
        self._dataset, self._seed = dataset, seed

    @property
    def bad(self) -> list[Bad]:
        """Samples that were passed over so far."""
        return list(self._dataset.bad.values())

    def sample(self, index: int) -> EditSample:
        """
        Raises:
            DataError: there is no good sample, or too many are bad.
        """
        epoch, offset = divmod(index, len(self._dataset))
        order = self._dataset.order(self._seed, epoch)
        for i in range(len(order)):
            sample = self._dataset.sample(int(order[(offset + i) % len(order)]))
            if sample is not None:
                return sample
        raise DataError(f"{self._dataset.config.path} has no good sample: {self._dataset.account()}")
