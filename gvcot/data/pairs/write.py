"""Writing samples as a dataset, in any of the containers."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gvcot.data.pairs.containers import RECORDS
from gvcot.data.pairs.record import encode
from gvcot.errors import DataError, closest
from gvcot.types import EditSample

SHARD = 1_000
"""Samples per parquet file or tar shard."""

ROW_GROUP = 16
"""Samples that are read together from a parquet file."""

_RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])

COLUMNS: dict[str, pa.DataType] = {
    "id": pa.string(),
    "instruction": pa.string(),
    "task": pa.string(),
    "source": pa.binary(),
    "target": pa.binary(),
    "mask": _RLE,
    "change_mask": _RLE,
    "paint": pa.string(),
    "referral": pa.string(),
    "region_caption": pa.string(),
    "scene_caption": pa.string(),
    "pointers": pa.list_(pa.list_(pa.string())),
    "regions": pa.list_(_RLE),
    "things": pa.list_(_RLE),
    "referents": pa.list_(pa.int32()),
}
"""Types of the known columns of a parquet file."""


def write(samples: Iterable[EditSample], out: Path, kind: str, shard: int = SHARD) -> int:
    """Write a dataset into a folder that is empty or new; how many samples it has. Images become PNG.

    Args:
        samples: consumed one by one.
        out: the folder.
        kind: folder, parquet or webdataset.
        shard: samples per file of the latter two.

    Raises:
        DataError: the folder is in use, or the kind is unknown.
    """
    if kind not in WRITERS:
        raise DataError(f"unknown kind of dataset {kind!r}; {closest(kind, WRITERS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and isn't an empty folder; give another place")
    out.mkdir(parents=True, exist_ok=True)
    return WRITERS[kind](iter(samples), out, shard)


def write_folder(samples: Iterator[EditSample], out: Path, shard: int) -> int:
    """Images in `images/`, `shard` samples per folder of it, and the records last."""
    lines = []
    for i, sample in enumerate(samples):
        folder = Path("images") / f"{i // shard:06d}"
        (out / folder).mkdir(parents=True, exist_ok=True)
        record = encode(sample)
        for name, data in images(sample).items():
            place = folder / f"{i:08d}.{name}.png"
            (out / place).write_bytes(data)
            record[name] = place.as_posix()
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    (out / RECORDS).write_text("".join(lines), encoding="utf-8")
    return len(lines)


def write_parquet(samples: Iterator[EditSample], out: Path, shard: int) -> int:
    """Files of `shard` rows, with small row groups."""
    total = 0
    for number, part in enumerate(parts(samples, shard)):
        rows = [encode(sample) | images(sample) for sample in part]
        names = [*COLUMNS, *sorted({name for row in rows for name in row} - COLUMNS.keys())]
        table = pa.table({n: pa.array([row.get(n) for row in rows], type=COLUMNS.get(n)) for n in names})
        pq.write_table(table, out / f"{number:06d}.parquet", row_group_size=ROW_GROUP)
        total += len(rows)
    return total


def write_webdataset(samples: Iterator[EditSample], out: Path, shard: int) -> int:
    """Tar shards; a sample's files lie one after the other."""
    total = 0
    for number, part in enumerate(parts(samples, shard)):
        with tarfile.open(out / f"{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in part:
                key = f"{total:08d}"
                record = json.dumps(encode(sample), ensure_ascii=False).encode()
                add(tar, f"{key}.json", record)
                for name, data in images(sample).items():
                    add(tar, f"{key}.{name}.png", data)
                total += 1
    return total


Writer = Callable[[Iterator[EditSample], Path, int], int]

WRITERS: dict[str, Writer] = {
    "folder": write_folder,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
}


def images(sample: EditSample) -> dict[str, bytes]:
    """The sample's images as PNG."""
    both: dict[str, np.ndarray | None] = {"source": sample.source_HW3, "target": sample.target_HW3}
    return {name: png(image_HW3) for name, image_HW3 in both.items() if image_HW3 is not None}


def png(image_HW3: np.ndarray) -> bytes:
    """An image without loss."""
    out = io.BytesIO()
    Image.fromarray(image_HW3).save(out, format="PNG")
    return out.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member; its time is 0, so that the same samples give the same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def parts(samples: Iterator[EditSample], size: int) -> Iterator[list[Any]]:
    """Lists of `size` samples; the last may be shorter."""
    while part := list(itertools.islice(samples, size)):
        yield part
