"""The ways in which a dataset lies on disk. Each gives any of its samples by index, one at a time.

    folder        samples.jsonl, a record per line; its "source" and "target" are image files beside it
    parquet       one or several files, a sample per row; columns are the record's fields, "source" and
                  "target" hold encoded images (binary, or {"bytes": binary, ...} as Hugging Face datasets
                  writes them)
    webdataset    uncompressed tar shards: KEY.json (the record), KEY.source.png, KEY.target.png (or .jpg,
                  .jpeg, .webp)

Many files are read in the order of their names.
"""

from __future__ import annotations

import json
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gvcot import plugins
from gvcot.data.pairs.record import Raw, SampleError
from gvcot.errors import DataError

RECORDS = "samples.jsonl"
"""The records of a folder."""

IMAGE_ENDINGS = ("png", "jpg", "jpeg", "webp")

OPEN_FILES = 16
"""Parquet files that stay open."""


class Container(Protocol):
    """Samples by index. Made from a path; a class of your own is named in `PairsConfig.kind`."""

    shards: Sequence[int]
    """Number of samples of each part of the dataset, in the order of their indices."""

    sequential: bool
    """Whether samples that lie near each other are read so much faster that orders should keep them near."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Raw:
        """The sample at an index.

        Raises:
            SampleError: it can't be read.
        """
        ...

    def place(self, index: int) -> str:
        """Where the sample lies, for one whose id can't be read."""
        ...

    def stamps(self, num: int) -> Iterator[str]:
        """What changes when one of the first `num` samples does: names, sizes and times of files."""
        ...


def open_container(path: str, kind: str = "auto") -> Container:
    """The dataset at a path.

    Raises:
        DataError: nothing readable lies there.
        ConfigError: an unknown kind.
    """
    place = Path(path)
    if not place.exists():
        raise DataError(f"no dataset at {place}: expected a folder, a .parquet file or a .tar file")
    found = plugins.resolve("container", guess(place) if kind == "auto" else kind)(place)
    if not len(found):
        raise DataError(f"the dataset at {place} has no samples")
    return found


def guess(path: Path) -> str:
    """How the dataset is stored, from what lies there."""
    if path.is_dir():
        if (path / RECORDS).is_file():
            return "folder"
        if any(path.glob("*.parquet")):
            return "parquet"
        if any(path.glob("*.tar")):
            return "webdataset"
        raise DataError(f"{path} holds no dataset: expected {RECORDS}, *.parquet or *.tar in it")
    known = {".jsonl": "folder", ".parquet": "parquet", ".tar": "webdataset"}
    if path.suffix not in known:
        raise DataError(
            f"{path} is no dataset: expected a folder, a .jsonl, a .parquet or an uncompressed .tar file"
        )
    return known[path.suffix]


class Folder:
    """Image files and a record per line of `samples.jsonl`."""

    sequential = False

    def __init__(self, path: Path) -> None:
        self._records = path / RECORDS if path.is_dir() else path
        try:
            with self._records.open("rb") as lines:
                starts = [0, *accumulate(len(line) for line in lines)]
            with self._records.open("rb") as lines:
                used = [start for start, line in zip(starts, lines, strict=False) if line.strip()]
        except OSError as error:
            raise DataError(f"cannot read the dataset {path}: {error}") from error
        self._starts = np.array(used, np.int64)
        self.shards = [len(used)]

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int) -> Raw:
        record = self._record(index)
        source, target = (partial(self._image, record.get(name)) for name in ("source", "target"))
        return Raw(record, source, None if record.get("target") is None else target)

    def place(self, index: int) -> str:
        return f"{self._records.name}:{index}"

    def stamps(self, num: int) -> Iterator[str]:
        yield stamp(self._records)
        for index in range(min(num, len(self))):
            try:
                record = self._record(index)
                files = [
                    self._records.parent / record[name] for name in ("source", "target") if name in record
                ]
                yield from map(stamp, files)
            except (SampleError, OSError, TypeError):
                yield f"bad {index}"

    def _record(self, index: int) -> Mapping[str, Any]:
        with self._records.open("rb") as lines:
            lines.seek(self._starts[index])
            return parsed(lines.readline())

    def _image(self, name: Any) -> bytes:
        if not isinstance(name, str):
            raise SampleError("no_image", f"expected the name of an image file, got {name!r:.50}")
        root = self._records.parent.resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise SampleError("no_image", f"{name!r} lies outside the dataset")
        try:
            return path.read_bytes()
        except OSError as error:
            raise SampleError("no_image", f"{name}: {error.strerror}") from error


class Parquet:
    """A sample per row of parquet files. A whole row group is read for a sample: keep them small."""

    sequential = False

    def __init__(self, path: Path) -> None:
        self._files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        self._open = lru_cache(OPEN_FILES)(lambda file: pq.ParquetFile(self._files[file], memory_map=True))
        self._group = lru_cache(1)(lambda file, group: self._open(file).read_row_group(group))
        groups = [self._lengths(file) for file in range(len(self._files))]
        self._groups = [(file, group) for file, sizes in enumerate(groups) for group in range(len(sizes))]
        self._starts = [0, *accumulate(size for sizes in groups for size in sizes)]
        self.shards = [sum(sizes) for sizes in groups]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> Raw:
        group = bisect_right(self._starts, index) - 1
        try:
            (row,) = self._group(*self._groups[group]).slice(index - self._starts[group], 1).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise SampleError("bad_record", str(error)) from error
        record = {name: value for name, value in row.items() if value is not None}
        source, target = (partial(encoded_image, record.pop(name, None)) for name in ("source", "target"))
        return Raw(record, source, None if row.get("target") is None else target)

    def place(self, index: int) -> str:
        file, group = self._groups[bisect_right(self._starts, index) - 1]
        return f"{self._files[file].name}:row group {group}:row {index}"

    def stamps(self, num: int) -> Iterator[str]:
        yield from map(stamp, self._files)

    def _lengths(self, file: int) -> list[int]:
        try:
            found = self._open(file).metadata
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot read {self._files[file]}: {error}") from error
        return [found.row_group(i).num_rows for i in range(found.num_row_groups)]


class WebDataset:
    """Uncompressed tar shards. Their headers are read once, so that every sample can be found again."""

    sequential = True

    def __init__(self, path: Path) -> None:
        self._files = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        self._index = [tar_index(file) for file in self._files]
        self.shards = [len(entries) for entries in self._index]
        self._starts = [0, *accumulate(self.shards)]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> Raw:
        shard, row = self._find(index)
        record, source, target = self._index[shard][row]
        if not record[1]:
            raise SampleError("bad_record", "it has no .json, or the shard ends here")
        images = [partial(self._bytes, shard, place) for place in (source, target)]
        return Raw(parsed(self._bytes(shard, record)), images[0], images[1] if target[1] else None)

    def place(self, index: int) -> str:
        shard, row = self._find(index)
        return f"{self._files[shard].name}:{row}"

    def stamps(self, num: int) -> Iterator[str]:
        yield from map(stamp, self._files)

    def _find(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _bytes(self, shard: int, place: np.ndarray) -> bytes:
        if not place[1]:
            raise SampleError("no_image", "it has no .source.png, .jpg or .webp")
        with self._files[shard].open("rb") as file:
            file.seek(int(place[0]))
            return file.read(int(place[1]))


def tar_index(path: Path) -> np.ndarray:
    """int64 (samples, 3, 2): (start, length) of each sample's record, source and target in an uncompressed
    tar; length 0 where it has none. The last sample of a shard that is cut off has nothing.

    Raises:
        DataError: no uncompressed tar file.
    """
    rows: dict[str, np.ndarray] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            try:
                for member in tar:
                    name = Path(member.name)
                    key, _, ending = name.name.partition(".")
                    what = ending_of(ending)
                    if member.isfile() and what is not None:
                        row = rows.setdefault(f"{name.parent}/{key}", np.zeros((3, 2), np.int64))
                        row[what] = member.offset_data, member.size
            except tarfile.ReadError:
                rows["cut off"] = np.zeros((3, 2), np.int64)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"cannot read {path}: {error}; expected an uncompressed tar file") from error
    return np.stack(list(rows.values())) if rows else np.zeros((0, 3, 2), np.int64)


def ending_of(ending: str) -> int | None:
    """Which of record, source and target a member's ending stands for; None: something else."""
    ending = ending.lower()
    if ending == "json":
        return 0
    what, _, image = ending.partition(".")
    known = image in IMAGE_ENDINGS and what in ("source", "target")
    return (1 if what == "source" else 2) if known else None


def parsed(line: bytes) -> Mapping[str, Any]:
    """A record of JSON.

    Raises:
        SampleError: it is none.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise SampleError("bad_record", f"no JSON: {error}") from error
    if not isinstance(record, dict):
        raise SampleError("bad_record", f"expected a JSON object, got {type(record).__name__}")
    return record


def encoded_image(value: Any) -> bytes:
    """The bytes in a column: plain, or as Hugging Face datasets keep them.

    Raises:
        SampleError: there are none.
    """
    found = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(found, bytes):
        raise SampleError("no_image", f"expected an encoded image, got {type(found).__name__}")
    return found


def stamp(path: Path) -> str:
    """Name, size and time of a file."""
    found = path.stat()
    return f"{path.name} {found.st_size} {found.st_mtime_ns}"
