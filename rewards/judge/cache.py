"""Scores that were paid for, kept in a SQLite file that processes and runs can share."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from gvcot.errors import ConfigError

BUSY_S = 5.0
"""Seconds to wait for another process that writes; nothing else is asked meanwhile."""

logger = logging.getLogger(__name__)


def cache_key(*, images: Sequence[bytes], **asked: Any) -> str:
    """Digest of a request.

    Args:
        images: the bytes of the images.
        asked: all else that can change the answer, as plain JSON values.
    """
    digests = [hashlib.sha256(image).hexdigest() for image in images]
    return hashlib.sha256(json.dumps({**asked, "images": digests}, sort_keys=True).encode()).hexdigest()


class ScoreCache:
    """Scores by key. One connection, to be used by one thread of one process; the file may be shared.

    A file that can't be read or written for the moment (locked, a full disk), or at a place that is damaged,
    ends nothing: its scores are asked for, and paid, again. That is warned of once.
    """

    def __init__(self, path: Path | None) -> None:
        """`path`: the file, made where it doesn't exist; None keeps scores in memory.

        Raises:
            ConfigError: the path can't be opened as a SQLite database.
        """
        self.hits = self.misses = 0
        self._warned = False
        try:
            self._connection = _connect(path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"cannot open the judge's cache {path}: {error}; name a file of its own on a "
                "local disk, or none"
            ) from error

    def get(self, keys: Sequence[str]) -> float | None:
        """The score of the first key that has one; counted as one hit or one miss."""
        for key in keys:
            row = self._try("SELECT score FROM scores WHERE key = ?", key)
            if row is not None:
                self.hits += 1
                return row[0]
        self.misses += 1
        return None

    def put(self, key: str, score: float) -> None:
        """Keep a score; the first one of a key stays."""
        self._try("INSERT OR IGNORE INTO scores VALUES (?, ?)", key, score)

    def _try(self, statement: str, *values: object) -> tuple[Any, ...] | None:
        """The first row, if any; None where the file can't be used."""
        try:
            return self._connection.execute(statement, values).fetchone()
        except sqlite3.ProgrammingError:  # ours
            raise
        except sqlite3.DatabaseError as error:
            if not self._warned:
                logger.warning("the judge's cache can't be used: %s; scores are asked for again", error)
            self._warned = True
            return None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is None:
        return _prepared(sqlite3.connect(":memory:", isolation_level=None))
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    # SQLite doesn't wait for the lock that turns on its write-ahead log.
    with FileLock(path.with_name(f"{path.name}.lock")):
        return _prepared(sqlite3.connect(path, timeout=BUSY_S, isolation_level=None))


def _prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL NOT NULL)")
    return connection
