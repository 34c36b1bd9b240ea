"""What each training step reads: a bounded set in seeded epochs, or samples without end.

Both feeds lay all rows out in one order, and step k reads positions k B to (k + 1) B of it. So a step's rows
are a pure function of (seed, k), wherever training begins or resumes.

An unlimited set is encoded shard by shard by a worker process, one shard ahead of training. Each shard is
used for some epochs, then dropped: nothing is kept on disk, and no more than about three shards in memory.
Where a shard of image pairs begins depends on the bad samples before it, so a run keeps that to resume from.

Legend: B rows of a step.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from gvcot import distributed
from gvcot.data.encoded import CHUNK, SHARD, EncodedScenes, chunks, concat, encode_chunks
from gvcot.data.pairs.config import PairsConfig
from gvcot.data.pairs.dataset import Bad, PairDataset, PairReader
from gvcot.data.scenes import DEFAULT, WorldConfig
from gvcot.data.source import SceneSource
from gvcot.errors import GvcotError, ResourceError
from gvcot.model.checkpoint import build_codec
from gvcot.model.codec import Autoencoder
from gvcot.model.config import UnifiedConfig
from gvcot.types import EditSample


class Feed(Protocol):
    """Gives each step its samples."""

    bad: list[Bad]
    """Samples that were left out, as far as they are known by now."""

    def batch(self, step: int) -> EncodedScenes:
        """The B samples of a step."""
        ...

    def state(self, step: int) -> dict[str, int]:
        """What a run that resumes at this step, the next one, needs beside its number."""
        ...


class Epochs:
    """A set in memory, in seeded permutations laid end to end."""

    def __init__(self, data: EncodedScenes, batch_size: int, seed: int, bad: Sequence[Bad] = ()) -> None:
        """
        Args:
            data: the set.
            batch_size: B.
            seed: of the permutations.
            bad: samples that the set was made without.
        """
        self._data, self._batch_size, self._seed = data, batch_size, seed
        self.bad = list(bad)

    def batch(self, step: int) -> EncodedScenes:
        return self._data.rows(epoch_rows(len(self._data), self._batch_size, self._seed, step))

    def state(self, step: int) -> dict[str, int]:
        return {}


class Shared:
    """One worker's feed, read by all workers that train together; each step's scenes travel to the others."""

    def __init__(self, feed: Feed | None) -> None:
        """
        Args:
            feed: worker 0's; None on the others.
        """
        self._feed = feed
        self.bad: list[Bad] = [] if feed is None else feed.bad

    def batch(self, step: int) -> EncodedScenes:
        """*Collective.*"""
        return distributed.from_leader(None if self._feed is None else self._feed.batch(step))

    def state(self, step: int) -> dict[str, int]:
        """Worker 0's."""
        return {} if self._feed is None else self._feed.state(step)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """Which samples a stream has, and in which order."""

    batch_size: int
    """B."""

    num_steps: int
    """Steps of the run; no shard is made ready for later ones."""

    seed: int
    """Of the order within shards."""

    world_seed: int
    """Of the scenes, or of the order of a dataset."""

    size: int
    """Pixels per side."""

    world: WorldConfig = DEFAULT
    """How hard the scenes are, and which tasks they have."""

    pairs: PairsConfig | None = None
    """A dataset instead of Scenes."""

    reuse: int = 4
    """Epochs for which a shard is used."""

    shard: int = SHARD
    """Samples that are encoded at a time."""


class SceneStream:
    """The training split from its first scene on, or a dataset in seeded epochs; each sample that comes is
    used `reuse` times. Close it after use."""

    def __init__(
        self,
        config: StreamConfig,
        model: UnifiedConfig,
        codec: Autoencoder,
        state: Mapping[str, int] | None = None,
    ) -> None:
        """
        Args:
            config: samples and order.
            model: geometry of latents.
            codec: encodes.
            state: of the stream that this one goes on from; scenes need none.
        """
        self._config = config
        self._grid = model.latent_grid(config.size, config.size)
        self._worker = ShardWorker(config, model, codec)
        self._ready: dict[int, EncodedScenes] = {}
        self._starts = {state["shard"]: state["position"]} if state else {0: 0}
        self.bad: list[Bad] = []

    def batch(self, step: int) -> EncodedScenes:
        """
        Raises:
            GvcotError: of the worker, such as a DataError about the world's settings.
            RuntimeError: another error of the worker.
            ResourceError: the worker was killed.
        """
        places = stream_rows(self._config, step)
        shards = sorted({shard for shard, _ in places})
        self._ready = {k: v for k, v in self._ready.items() if k in shards}
        for shard in shards:
            if shard not in self._ready:
                self._ready[shard] = self._take(shard)
        parts = groupby(places, key=lambda place: place[0])
        return concat([self._ready[shard].rows([row for _, row in part]) for shard, part in parts])

    def state(self, step: int) -> dict[str, int]:
        """Where the first shard of the step begins in the dataset; nothing for scenes."""
        if self._config.pairs is None:
            return {}
        shard = stream_rows(self._config, step)[0][0]
        return {"shard": shard, "position": self._starts[shard]}

    def close(self) -> None:
        """Stop the worker."""
        self._worker.close()

    def _take(self, shard: int) -> EncodedScenes:
        config = self._config
        got = self._worker.take(shard, self._start(shard))
        self._starts[shard + 1] = got.end
        self.bad.extend(got.bad)
        if (shard + 1) * config.shard * config.reuse < config.num_steps * config.batch_size:
            self._worker.prepare(shard + 1, got.end)
        fields: dict[str, Any] = {**{k: torch.from_numpy(v) for k, v in got.arrays.items()}, **got.texts}
        return EncodedScenes(**fields, grid=self._grid)

    def _start(self, shard: int) -> int:
        """Where a shard begins in the dataset."""
        if self._config.pairs is None:
            return 0
        assert shard in self._starts, "a dataset is streamed in order"
        return self._starts[shard]


class Encoded(NamedTuple):
    """An encoded shard as it travels between processes."""

    arrays: dict[str, np.ndarray]
    texts: dict[str, list[str]]
    end: int
    """Where the next one begins in the dataset."""

    bad: list[Bad]
    """Samples that were left out."""


class ShardWorker:
    """A process with one thread that encodes one shard at a time, where the codec is, and ends with its
    parent."""

    def __init__(self, config: StreamConfig, model: UnifiedConfig, codec: Autoencoder) -> None:
        # Not a fork: torch's thread pools don't survive one.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        weights = {name: value.numpy(force=True) for name, value in codec.state_dict().items()}
        device = next(codec.parameters()).device.type
        arguments = (theirs, config, model, weights, device)
        self._process = context.Process(target=_serve, args=arguments, daemon=True, name="encoder")
        self._process.start()
        theirs.close()  # else the end of the worker would not be seen here
        self._pending: int | None = None

    def prepare(self, shard: int, start: int = 0) -> None:
        """Let the worker encode a shard that begins here in the dataset; the next `take` receives it."""
        try:
            self._connection.send((shard, start))
        except OSError:
            raise self._death() from None
        self._pending = shard

    def take(self, shard: int, start: int = 0) -> Encoded:
        """A shard, encoded now unless it was prepared."""
        if self._pending not in (None, shard):
            self._receive()
        if self._pending is None:
            self.prepare(shard, start)
        return self._receive()

    def close(self) -> None:
        self._process.terminate()
        self._process.join()
        self._connection.close()

    def _receive(self) -> Encoded:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        self._pending = None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _death(self) -> ResourceError:
        self._process.join(timeout=5)
        return ResourceError(
            f"the process that encodes training scenes ended with exit code {self._process.exitcode} (-9: "
            "killed, mostly for want of memory): free some memory, or set data.num_samples to a bounded set; "
            "then resume"
        )


def _serve(
    connection: Connection,
    config: StreamConfig,
    model: UnifiedConfig,
    weights: dict[str, np.ndarray],
    device: str,
) -> None:
    """The worker: a shard's number in, the shard or an exception out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threading.Thread(target=distributed.end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    codec = build_codec(model.codec).requires_grad_(False)
    codec.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    codec.to(device)
    shards: Shards | None = None
    while True:
        shard, start = connection.recv()
        try:
            if shards is None:
                shards = SceneShards(config) if config.pairs is None else PairShards(config, config.pairs)
            parts = shards.read(shard, start)
            tensors, texts = encode_chunks(codec, model.latent_patch, parts, config.size)
        except Exception as error:
            # others may not be picklable
            known = isinstance(error, GvcotError)
            connection.send(
                error if known else RuntimeError(f"encoding samples failed:\n{traceback.format_exc()}")
            )
            raise SystemExit(1) from error
        # Arrays, not tensors: those would travel through shared memory, of which containers have little.
        arrays = {name: value.numpy() for name, value in tensors.items()}
        connection.send(Encoded(arrays=arrays, texts=texts, end=shards.end, bad=shards.bad))


class Shards(Protocol):
    """Reads the samples of shards."""

    end: int
    """Where the shard after the latest one begins in the dataset."""

    bad: list[Bad]
    """Samples that the latest one was read without."""

    def read(self, shard: int, start: int) -> Iterator[Sequence[EditSample]]:
        """A shard, as many samples at a time as are encoded together."""
        ...


class SceneShards:
    """Consecutive scenes of the training split."""

    def __init__(self, config: StreamConfig) -> None:
        self._source = SceneSource(seed=config.world_seed, size=config.size, world=config.world)
        self._size = config.shard
        self.end, self.bad = 0, []

    def read(self, shard: int, start: int) -> Iterator[Sequence[EditSample]]:
        return chunks(self._source, range(shard * self._size, (shard + 1) * self._size), self.bad)


class PairShards:
    """Good samples of a dataset, from where the shard before has ended."""

    def __init__(self, config: StreamConfig, pairs: PairsConfig) -> None:
        self._dataset = PairDataset(pairs, size=config.size, need_target=True)
        self._seed, self._size = config.world_seed, config.shard
        self.end, self.bad = 0, []

    def read(self, shard: int, start: int) -> Iterator[Sequence[EditSample]]:
        reader = PairReader(self._dataset, seed=self._seed, position=start)
        known = set(self._dataset.bad)
        for first in range(0, self._size, CHUNK):
            yield list(islice(reader, min(CHUNK, self._size - first)))
        self.end = reader.position
        self.bad = [bad for index, bad in self._dataset.bad.items() if index not in known]


def epoch_rows(num_samples: int, batch_size: int, seed: int, step: int) -> Sequence[int]:
    """Rows of step k when seeded permutations of a bounded set are laid end to end."""
    places = (divmod(position, num_samples) for position in _positions(batch_size, step))
    return [int(_permutation(num_samples, seed, epoch)[offset]) for epoch, offset in places]


def stream_rows(config: StreamConfig, step: int) -> list[tuple[int, int]]:
    """(shard, row in it) of each row of step k: `reuse` permutations of each shard, shard after shard."""
    places = []
    for position in _positions(config.batch_size, step):
        epoch, offset = divmod(position, config.shard)
        shard = epoch // config.reuse
        places.append((shard, int(_permutation(config.shard, config.seed, epoch)[offset])))
    return places


def _positions(batch_size: int, step: int) -> range:
    return range(step * batch_size, (step + 1) * batch_size)


@lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
