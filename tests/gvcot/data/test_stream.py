"""Scenes without end: every one new, each used as often as asked, the same wherever a run resumes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from gvcot.data import scenes
from gvcot.data.encoded import EncodedScenes, encode_shard
from gvcot.data.stream import SceneStream, StreamConfig, stream_rows
from gvcot.errors import DataError, ResourceError
from gvcot.model.pretrained import Pretrained


def config(**changes: Any) -> StreamConfig:
    plain = {"batch_size": 6, "num_steps": 8, "seed": 0, "world_seed": 0, "size": 64, "reuse": 2, "shard": 4}
    return StreamConfig(**(plain | changes))


@contextmanager
def stream(policy: Pretrained, order: StreamConfig) -> Iterator[SceneStream]:
    with closing(SceneStream(order, policy.model.config, policy.codec)) as opened:
        yield opened


def use(opened: SceneStream, steps: range) -> None:
    for step in steps:
        opened.batch(step)


def same(a: EncodedScenes, b: EncodedScenes) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(EncodedScenes)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


@pytest.mark.parametrize(("batch_size", "shard", "reuse"), [(6, 4, 2), (5, 15, 3), (40, 4, 1)])
def test_every_shard_is_new_and_each_row_is_used_as_often_as_asked(
    batch_size: int, shard: int, reuse: int
) -> None:
    order = config(batch_size=batch_size, shard=shard, reuse=reuse)
    span = shard * reuse
    num_steps = 3 * span  # whole shards
    places = [place for step in range(num_steps) for place in stream_rows(order, step)]
    num_shards = num_steps * batch_size // span
    assert [s for s, _ in places] == [i // span for i in range(num_shards * span)]  # one after the other
    assert Counter(places) == {(s, row): reuse for s in range(num_shards) for row in range(shard)}
    epochs = [places[i : i + shard] for i in range(0, len(places), shard)]
    assert all(len(set(epoch)) == shard for epoch in epochs)  # none twice before all were used


def test_the_order_is_another_with_another_seed_and_in_another_epoch() -> None:
    def rows(seed: int) -> list[int]:
        order = config(seed=seed, batch_size=50, shard=50, reuse=3)
        return [row for step in range(6) for _, row in stream_rows(order, step)]

    assert rows(0) != rows(1)
    assert len({tuple(rows(0)[i : i + 50]) for i in range(0, 300, 50)}) == 6


def test_a_stream_gives_the_encoded_scenes_wherever_it_begins(policy: Pretrained) -> None:
    order = config()
    with stream(policy, order) as straight:
        batches = [straight.batch(step) for step in range(6)]  # 36 rows: 4.5 shards of 8 rows, cut unevenly
        assert len(straight._ready) <= 2
    for step in (0, 3, 5):
        for i, (shard, row) in enumerate(stream_rows(order, step)):
            index = order.shard * shard + row
            assert batches[step].instructions[i] == scenes.generate(0, index).instruction
    indices = range(order.shard, 2 * order.shard)
    tensors, texts = encode_shard(policy.codec, policy.model.config, 0, indices, 64)
    places = stream_rows(order, 1)  # rows 6 to 11: the end of the first shard, the start of the second
    assert {shard for shard, _ in places} == {0, 1}
    for i, (shard, row) in enumerate(places):
        if shard == 1:
            assert batches[1].captions[i] == texts["captions"][row]
            assert torch.equal(batches[1].x_edit_MND[i], tensors["x_edit_MND"][row])
            assert torch.equal(batches[1].x_cot_M3HW[i], tensors["x_cot_M3HW"][row])

    with stream(policy, order) as resumed:  # in the middle of a shard, and not in order
        for step in (2, 3, 4, 5, 0, 3):
            assert same(resumed.batch(step), batches[step])
    assert not multiprocessing.active_children()


def test_what_stops_the_worker_reaches_the_user(policy: Pretrained) -> None:
    with (
        stream(policy, config(size=48)) as small,
        pytest.raises(DataError, match="image size 48 does not fit a grid"),
    ):
        small.batch(0)
    with stream(policy, config()) as killed:
        killed.batch(0)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(ResourceError, match="exit code -9"):
            use(killed, range(1, 8))


PARENT = """
import multiprocessing, sys, time
from pathlib import Path
from gvcot.data.stream import SceneStream, StreamConfig
from gvcot.model.pretrained import load_pretrained

if __name__ == "__main__":
    policy = load_pretrained(Path(sys.argv[1]))
    order = StreamConfig(batch_size=1, num_steps=9, seed=0, world_seed=0, size=64, shard=10**6)
    stream = SceneStream(order, policy.model.config, policy.codec)
    stream._worker.prepare(0)  # takes an hour
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(600)
"""


def test_the_worker_ends_with_its_parent(policy_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), str(policy_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    until = time.monotonic() + 30
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.1)
