"""What each training step reads: a bounded set in seeded epochs, or scenes without end.

Both feeds lay all rows out in one order, and step k reads positions k B to (k + 1) B of it. So a step's rows
are a pure function of (seed, k), wherever training begins or resumes.

An unlimited set is encoded shard by shard by a worker process, one shard ahead of training. Each shard is
used for some epochs, then dropped: nothing is kept on disk, and no more than about three shards in memory.

Legend: B rows of a step.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
import torch

from gvcot import distributed
from gvcot.data.encoded import SHARD, EncodedScenes, concat, encode_shard
from gvcot.data.scenes import DEFAULT, WorldConfig
from gvcot.errors import GvcotError, ResourceError
from gvcot.model.checkpoint import build_codec
from gvcot.model.codec import Autoencoder
from gvcot.model.config import UnifiedConfig


class Feed(Protocol):
    """Gives each step its scenes."""

    def batch(self, step: int) -> EncodedScenes:
        """The B scenes of a step."""
        ...


class Epochs:
    """A set in memory, in seeded permutations laid end to end."""

    def __init__(self, data: EncodedScenes, batch_size: int, seed: int) -> None:
        """
        Args:
            data: the set.
            batch_size: B.
            seed: of the permutations.
        """
        self._data, self._batch_size, self._seed = data, batch_size, seed

    def batch(self, step: int) -> EncodedScenes:
        return self._data.rows(epoch_rows(len(self._data), self._batch_size, self._seed, step))


class Shared:
    """One worker's feed, read by all workers that train together; each step's scenes travel to the others."""

    def __init__(self, feed: Feed | None) -> None:
        """
        Args:
            feed: worker 0's; None on the others.
        """
        self._feed = feed

    def batch(self, step: int) -> EncodedScenes:
        """*Collective.*"""
        return distributed.from_leader(None if self._feed is None else self._feed.batch(step))


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """Which scenes a stream has, and in which order."""

    batch_size: int
    """B."""

    num_steps: int
    """Steps of the run; no shard is made ready for later ones."""

    seed: int
    """Of the order within shards."""

    world_seed: int
    """Of the scenes."""

    size: int
    """Pixels per side."""

    world: WorldConfig = DEFAULT
    """How hard the scenes are, and which tasks they have."""

    reuse: int = 4
    """Epochs for which a shard is used."""

    shard: int = SHARD
    """Scenes that are encoded at a time."""


class SceneStream:
    """The training split from its first scene on, each one used `reuse` times. Close it after use."""

    def __init__(self, config: StreamConfig, model: UnifiedConfig, codec: Autoencoder) -> None:
        self._config = config
        self._grid = model.latent_grid(config.size, config.size)
        self._worker = ShardWorker(config, model, codec)
        self._ready: dict[int, EncodedScenes] = {}

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

    def close(self) -> None:
        """Stop the worker."""
        self._worker.close()

    def _take(self, shard: int) -> EncodedScenes:
        config = self._config
        arrays, texts = self._worker.take(shard)
        if (shard + 1) * config.shard * config.reuse < config.num_steps * config.batch_size:
            self._worker.prepare(shard + 1)
        fields: dict[str, Any] = {**{k: torch.from_numpy(v) for k, v in arrays.items()}, **texts}
        return EncodedScenes(**fields, grid=self._grid)


Encoded = tuple[dict[str, np.ndarray], dict[str, list[str]]]
"""An encoded shard as it travels between processes."""


class ShardWorker:
    """A process with one thread that encodes one shard at a time, and ends with its parent."""

    def __init__(self, config: StreamConfig, model: UnifiedConfig, codec: Autoencoder) -> None:
        # Not a fork: torch's thread pools don't survive one.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        weights = {name: value.numpy(force=True) for name, value in codec.state_dict().items()}
        arguments = (theirs, config, model, weights)
        self._process = context.Process(target=_serve, args=arguments, daemon=True, name="encoder")
        self._process.start()
        theirs.close()  # else the end of the worker would not be seen here
        self._pending: int | None = None

    def prepare(self, shard: int) -> None:
        """Let the worker encode a shard, which the next `take` receives."""
        try:
            self._connection.send(shard)
        except OSError:
            raise self._death() from None
        self._pending = shard

    def take(self, shard: int) -> Encoded:
        """A shard, encoded now unless it was prepared."""
        if self._pending not in (None, shard):
            self._receive()
        if self._pending is None:
            self.prepare(shard)
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
) -> None:
    """The worker: a shard's number in, the shard or an exception out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threading.Thread(target=distributed.end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    codec = build_codec(model.codec).requires_grad_(False)
    codec.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    while True:
        first = connection.recv() * config.shard
        indices = range(first, first + config.shard)
        try:
            tensors, texts = encode_shard(codec, model, config.world_seed, indices, config.size, config.world)
        except Exception as error:
            # others may not be picklable
            known = isinstance(error, GvcotError)
            connection.send(
                error if known else RuntimeError(f"encoding scenes failed:\n{traceback.format_exc()}")
            )
            raise SystemExit(1) from error
        # Arrays, not tensors: those would travel through shared memory, of which containers have little.
        connection.send(({name: value.numpy() for name, value in tensors.items()}, texts))


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
