"""Every good sample once per epoch, whoever reads and wherever reading stops; no bad one ever."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvcot.data.pairs.config import PairsConfig
from gvcot.data.pairs.containers import Raw
from gvcot.data.pairs.dataset import PairDataset, PairReader, Prompts
from gvcot.data.pairs.order import epoch_order
from gvcot.data.pairs.record import rle
from gvcot.data.pairs.write import png
from gvcot.data.source import PairSource, given_fields
from gvcot.data.stream import PairShards, StreamConfig
from gvcot.errors import DataError

PICTURE = png(np.zeros((8, 8, 3), np.uint8))
MASK = rle(np.ones((8, 8), bool))

SHARDS = st.lists(st.integers(1, 9), min_size=2, max_size=5).filter(lambda sizes: sum(sizes) >= 8)
BUFFER = st.integers(0, 12)


class Numbers:
    """Samples whose ids are their indices; some are bad. Its file says how many there are."""

    sequential = True

    def __init__(self, path: Path) -> None:
        about = json.loads(path.read_text())
        self.shards, self._bad = about["shards"], set(about["bad"])

    def __len__(self) -> int:
        return sum(self.shards)

    def read(self, index: int) -> Raw:
        task = "nonsense" if index in self._bad else "color"
        record = {"id": str(index), "instruction": "make it red", "task": task, "mask": MASK}
        return Raw(record, lambda: PICTURE, lambda: PICTURE)

    def place(self, index: int) -> str:
        return str(index)

    def stamps(self, num: int) -> Iterator[str]:
        yield ""


def numbers(shards: list[int], bad: tuple[int, ...] = (), buffer: int = 0, share: float = 1.0) -> PairDataset:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"shards": shards, "bad": bad}, file)
        file.flush()
        config = PairsConfig(path=file.name, kind=f"{__name__}:Numbers", buffer=buffer, max_bad_share=share)
        return PairDataset(config, size=8, need_target=True)


def ids(reader: PairReader, num: int) -> list[int]:
    return [int(sample.sample_id) for sample in islice(reader, num)]


@given(SHARDS, BUFFER, st.sets(st.integers(0, 7), max_size=2), st.integers(1, 4), st.integers(0, 5))
def test_ranks_share_every_epoch_out(
    shards: list[int], buffer: int, bad: set[int], world_size: int, seed: int
) -> None:
    total = sum(shards)
    seen: list[list[int]] = [[], []]
    for rank in range(world_size):
        dataset = numbers(shards, tuple(bad), buffer)
        reader = PairReader(dataset, seed=seed, rank=rank, world_size=world_size)
        for sample in reader:
            epoch = (reader.position - world_size) // total
            if epoch >= len(seen):
                break
            seen[epoch].append(int(sample.sample_id))
    good = sorted(set(range(total)) - bad)
    assert [sorted(epoch) for epoch in seen] == [good, good]


@given(SHARDS, BUFFER, st.sets(st.integers(0, 7), max_size=2), st.integers(1, 3), st.integers(0, 30))
def test_a_reader_goes_on_where_another_one_stopped(
    shards: list[int], buffer: int, bad: set[int], world_size: int, cut: int
) -> None:
    how: dict[str, Any] = {"seed": 3, "rank": world_size - 1, "world_size": world_size}
    straight = ids(PairReader(numbers(shards, tuple(bad), buffer), **how), cut + 6)
    stopped = PairReader(numbers(shards, tuple(bad), buffer), **how)
    before = ids(stopped, cut)
    resumed = PairReader(numbers(shards, tuple(bad), buffer), **how, position=stopped.position)
    assert before + ids(resumed, 6) == straight


@given(SHARDS, BUFFER, st.integers(1, 4), st.integers(1, 4), st.integers(0, 6))
def test_another_number_of_ranks_goes_on_without_loss_or_repetition(
    shards: list[int], buffer: int, before: int, after: int, rounds: int
) -> None:
    """Where no sample is bad, and all ranks have read equally often."""

    def readers(world_size: int, position: int) -> list[PairReader]:
        dataset = numbers(shards, (), buffer)
        make = [{"rank": r, "world_size": world_size, "position": position} for r in range(world_size)]
        return [PairReader(dataset, seed=0, **how) for how in make]

    first = readers(before, 0)
    read = [i for _ in range(rounds) for reader in first for i in ids(reader, 1)]
    second = readers(after, min(reader.position for reader in first))
    read += [i for _ in range(9) for reader in second for i in ids(reader, 1)]
    # the order of ranks within a round may change
    assert sorted(read) == sorted(ids(PairReader(numbers(shards, (), buffer), seed=0), len(read)))


@given(SHARDS, BUFFER, st.integers(0, 3))
def test_an_order_is_a_permutation_that_stays_within_its_buffer(
    shards: list[int], buffer: int, seed: int
) -> None:
    order = epoch_order(shards, seed, 0, buffer)
    assert sorted(order) == list(range(sum(shards)))
    assert (order == epoch_order(shards, seed, 0, buffer)).all()
    if buffer:
        one_shard = epoch_order([sum(shards)], seed, 0, buffer)
        assert (one_shard < np.arange(len(one_shard)) + buffer).all()


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = {tuple(epoch_order([5, 20, 9], seed, epoch, 10)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_one_place_in_the_buffer_shuffles_shards_alone() -> None:
    parts = [[0, 1, 2], [3], [4, 5, 6, 7]]
    for seed in range(5):
        order = epoch_order([3, 1, 4], seed, 0, 1).tolist()
        begins = sorted(range(3), key=lambda part: order.index(parts[part][0]))
        assert order == [index for part in begins for index in parts[part]]


def test_nothing_good_is_an_error_not_a_search_without_end() -> None:
    reader = PairReader(numbers([2, 2], (0, 1, 2, 3)), seed=0)
    with pytest.raises(DataError, match="no good sample: 4 unknown_task; such as"):
        next(reader)
    with pytest.raises(DataError, match="no good sample"):
        Prompts(numbers([2], (0, 1)), seed=0).sample(5)


def test_prompts_are_the_same_at_an_index_whoever_asks_and_in_whatever_order() -> None:
    forwards, backwards = (Prompts(numbers([4, 6], (2, 7)), seed=1) for _ in range(2))
    one = [forwards.sample(i).sample_id for i in range(30)]
    other = [backwards.sample(i).sample_id for i in reversed(range(30))][::-1]
    assert one == other
    for epoch in range(3):
        assert set(one[10 * epoch : 10 * epoch + 10]) == set(map(str, range(10))) - {"2", "7"}
    assert {bad.id for bad in forwards.bad} == {"2", "7"}


def test_the_first_good_samples_are_evaluated_on() -> None:
    source = PairSource(numbers([3, 3], (1,)))
    assert list(source.indices(3)) == [0, 2, 3]
    assert list(source.indices(None)) == [0, 2, 3, 4, 5]
    assert source.sample(2).sample_id == "2"
    with pytest.raises(DataError, match="has 5 good samples, expected 6"):
        source.indices(6)


def test_shards_of_a_stream_follow_each_other_without_gap(datasets: dict[str, Path]) -> None:
    pairs = PairsConfig(path=str(datasets["webdataset"]), buffer=5)
    order = StreamConfig(batch_size=2, num_steps=9, seed=0, world_seed=4, size=64, shard=5, pairs=pairs)
    dataset = PairDataset(pairs, size=64, need_target=True)
    straight = [s.sample_id for s in islice(PairReader(dataset, seed=4), 15)]
    shards, read, starts = PairShards(order, pairs), [], [0]
    for shard in range(3):
        read += [s.sample_id for part in shards.read(shard, starts[-1]) for s in part]
        starts.append(shards.end)
    assert read == straight
    again = PairShards(order, pairs)  # a worker that starts in the middle
    assert [s.sample_id for part in again.read(2, starts[2]) for s in part] == straight[10:]


def test_what_a_dataset_gives_to_rewards_is_seen_from_its_samples(datasets: dict[str, Path]) -> None:
    everything = {"mask", "change_mask", "target", "things", "region_caption"}
    assert given_fields(PairsConfig(path=str(datasets["folder"]))) == everything == given_fields(None)
    kind = f"{__name__}:Numbers"
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"shards": [9], "bad": []}, file)
        file.flush()
        assert given_fields(PairsConfig(path=file.name, kind=kind)) == {"mask", "target"}


def test_datasets_are_read_without_torch() -> None:
    code = "import sys; import gvcot.data.source, gvcot.data.pairs.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
