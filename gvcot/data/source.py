"""Where samples come from, by index: the procedural world, or a dataset of image pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gvcot.data import scenes
from gvcot.data.pairs.config import PairsConfig
from gvcot.data.pairs.dataset import Bad, PairDataset, Prompts
from gvcot.data.scenes import DEFAULT, Split, WorldConfig
from gvcot.errors import DataError
from gvcot.types import EditSample


class Source(Protocol):
    """Samples that are encoded for training."""

    @property
    def num_samples(self) -> int | None:
        """Bad ones included; None: without end."""
        ...

    def take(self, indices: Sequence[int]) -> tuple[list[EditSample], list[Bad]]:
        """The good ones of some samples in their order, and the bad ones."""
        ...

    def identity(self, num: int) -> dict[str, int | str]:
        """What the first `num` samples depend on."""
        ...


class PromptSource(Protocol):
    """Samples that chains are drawn for: the same at an index in every process."""

    @property
    def bad(self) -> Sequence[Bad]:
        """Samples that were passed over so far."""
        ...

    def sample(self, index: int) -> EditSample:
        """The sample at an index, which has no end."""
        ...


class HeldOut(Protocol):
    """Samples to evaluate on."""

    @property
    def bad(self) -> Sequence[Bad]:
        """Samples that were passed over so far."""
        ...

    def indices(self, num: int | None) -> Sequence[int]:
        """Where the first `num` good samples are; all, for None.

        Raises:
            DataError: there are fewer, or too many bad ones.
        """
        ...

    def sample(self, index: int) -> EditSample:
        """The sample at one of these."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneSource:
    """A split of Scenes."""

    seed: int
    size: int
    """Pixels per side."""

    world: WorldConfig = DEFAULT
    split: Split = "train"

    @property
    def bad(self) -> Sequence[Bad]:
        return ()

    @property
    def num_samples(self) -> int | None:
        return None if self.split == "train" else scenes.length(self.split)

    def indices(self, num: int | None) -> Sequence[int]:
        return range(scenes.length(self.split) if num is None else num)

    def sample(self, index: int) -> EditSample:
        return scenes.generate(self.seed, index, split=self.split, size=self.size, world=self.world)

    def take(self, indices: Sequence[int]) -> tuple[list[EditSample], list[Bad]]:
        return [self.sample(index) for index in indices], []

    def identity(self, num: int) -> dict[str, int | str]:
        return {"seed": self.seed, "size": self.size, "world": f"{self.world.tasks} {self.world.resolve()}"}


class PairSource:
    """A dataset of image pairs in its own order."""

    def __init__(self, dataset: PairDataset) -> None:
        self._dataset = dataset
        self.num_samples: int | None = len(dataset)

    @property
    def bad(self) -> Sequence[Bad]:
        return tuple(self._dataset.bad.values())

    def indices(self, num: int | None) -> Sequence[int]:
        found: list[int] = []
        for index in range(len(self._dataset)):
            if len(found) == num:
                break
            if self._dataset.sample(index) is not None:
                found.append(index)
        if not found or (num is not None and len(found) < num):
            raise DataError(
                f"{self._dataset.config.path} has {len(found)} good samples, expected {num or 'some'}: lower "
                "num_samples"
            )
        return found

    def sample(self, index: int) -> EditSample:
        """
        Raises:
            DataError: it is bad.
        """
        found = self._dataset.sample(index)
        if found is None:
            raise DataError(f"{self._dataset.config.path}: sample {index} is bad: {self._dataset.bad[index]}")
        return found

    def take(self, indices: Sequence[int]) -> tuple[list[EditSample], list[Bad]]:
        """
        Raises:
            DataError: too many of the samples read so far are bad.
        """
        found = [self._dataset.sample(index) for index in indices]
        bad = [self._dataset.bad[i] for i, sample in zip(indices, found, strict=True) if sample is None]
        return [sample for sample in found if sample is not None], bad

    def identity(self, num: int) -> dict[str, int | str]:
        return {"pairs": self._dataset.version(num)}


def prompt_source(pairs: PairsConfig | None, *, seed: int, size: int, world: WorldConfig) -> PromptSource:
    """The stream of training prompts of a run: a dataset's, else those of Scenes.

    Raises:
        DataError, ConfigError: no such dataset.
    """
    if pairs is None:
        return SceneSource(seed=seed, size=size, world=world)
    return Prompts(PairDataset(pairs, size=size, need_target=False), seed)


SAMPLE_FIELDS = ("mask", "change_mask", "target", "things", "region_caption")
"""What samples can give to rewards, and those of Scenes do."""

LOOKED_AT = 16
"""Samples of a dataset that tell which fields it has."""


def given_fields(pairs: PairsConfig | None) -> set[str]:
    """Those of `SAMPLE_FIELDS` that the first good samples of a dataset have, at least one of them; all, for
    Scenes.

    Raises:
        DataError, ConfigError: no such dataset, or none of its first samples is good.
    """
    if pairs is None:
        return set(SAMPLE_FIELDS)
    dataset = PairDataset(pairs, size=None, need_target=False)
    found = [dataset.sample(index) for index in range(min(LOOKED_AT, len(dataset)))]
    samples = [sample for sample in found if sample is not None]
    if not samples:
        raise DataError(f"{pairs.path}: the first {len(found)} samples are bad: {dataset.account()}")
    has = {
        "mask": True,
        "change_mask": any(s.change_mask_HW is not None for s in samples),
        "target": any(s.target_HW3 is not None for s in samples),
        "things": any(s.things for s in samples),
        "region_caption": any(s.region_caption for s in samples),
    }
    return {name for name in SAMPLE_FIELDS if has[name]}


def held_out(pairs: PairsConfig | None, split: Split, *, size: int, world: WorldConfig) -> HeldOut:
    """Samples to evaluate on: of a dataset, else of a split of Scenes.

    Raises:
        DataError, ConfigError: no such dataset.
    """
    if pairs is None:
        return SceneSource(seed=0, size=size, world=world, split=split)
    return PairSource(PairDataset(pairs, size=size, need_target=False))


def first_samples(source: HeldOut, num: int | None) -> list[EditSample]:
    """The first `num` good samples of a set; all, for None. Raises DataError where there are fewer."""
    return [source.sample(index) for index in source.indices(num)]
