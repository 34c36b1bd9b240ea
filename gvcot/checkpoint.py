"""Training state on disk: one safetensors file and one JSON file. Nothing that unpickles.

A state is a nested dict of tensors (weights, optimizer moments, generator states) and a JSON-able record
(step, data position). Tensor dtypes, shapes and bits survive exactly.

    state.safetensors   tensors under their path, e.g. "optimizer/layers.0.weight/exp_avg"
    state.json          format version, the record, and the tensor file's length and CRC-32; written last, so
                        that its presence says that the state is complete
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gvcot.errors import CheckpointError

TENSORS_FILE = "state.safetensors"
META_FILE = "state.json"
FORMAT = 1

NestedTensors = dict[str, "Tensor | NestedTensors"]

_REMEDY = "Resume from an earlier step, or copy the directory again."


def save_state(directory: Path | str, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write a state into a directory, which is created; an older state there is replaced.

    Args:
        directory: where to; `RunDir.save_checkpoint` makes a directory appear whole or not at all.
        tensors: nested dict of tensors on any device; keys may hold any characters.
        meta: JSON-able record.

    Raises:
        TypeError: for values that are neither tensors nor dicts, or a record that JSON can't express.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    flat, empty = flatten(tensors)
    record = {"format": FORMAT, "meta": dict(meta), "empty": empty}
    json.dumps(record)  # fail before anything is written

    (directory / META_FILE).unlink(missing_ok=True)
    aside = directory / (TENSORS_FILE + ".partial")
    save_file(_own_storages(flat), aside)
    record["bytes"], record["crc32"] = aside.stat().st_size, _crc32(aside)
    _sync(aside)
    aside.replace(directory / TENSORS_FILE)

    aside = directory / (META_FILE + ".partial")
    aside.write_text(json.dumps(record, indent=1))
    _sync(aside)
    aside.replace(directory / META_FILE)
    _sync(directory)


def load_state(directory: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `save_state` wrote: (nested dict whose leaves are tensors on the CPU, record).

    Raises:
        CheckpointError: if the state is absent, incomplete, truncated, altered, or of another format.
    """
    directory = Path(directory)
    record = _read_record(directory / META_FILE)
    path = directory / TENSORS_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. {_REMEDY}")
    if path.stat().st_size != record["bytes"]:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes, expected {record['bytes']}: it is truncated. {_REMEDY}"
        )
    if _crc32(path) != record["crc32"]:
        raise CheckpointError(f"{path} doesn't match its checksum: it was altered or damaged. {_REMEDY}")
    try:
        flat = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}). {_REMEDY}") from error
    return unflatten(flat, record["empty"]), record["meta"]


def flatten(tensors: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Nested dict -> {path: tensor} and the paths of empty dicts.

    Keys are joined by "/"; "%" and "/" in them are written %25 and %2F.

    Raises:
        TypeError: for leaves that aren't tensors.
    """
    flat: dict[str, Tensor] = {}
    empty: list[str] = []

    def walk(node: Mapping[str, Any], path: tuple[str, ...]) -> None:
        if not node and path:
            empty.append("/".join(path))
        for key, value in node.items():
            here = (*path, key.replace("%", "%25").replace("/", "%2F"))
            if isinstance(value, Mapping):
                walk(value, here)
            elif isinstance(value, Tensor):
                flat["/".join(here)] = value
            else:
                raise TypeError(
                    f"{'/'.join(here)} is a {type(value).__name__}; a state holds tensors and dicts"
                )

    walk(tensors, ())
    return flat, empty


def unflatten(flat: Mapping[str, Tensor], empty: list[str]) -> NestedTensors:
    """The inverse of `flatten`."""
    nested: NestedTensors = {}
    leaves: list[tuple[str, Tensor | NestedTensors]] = [*flat.items(), *((path, {}) for path in empty)]
    for path, value in leaves:
        *parents, last = [key.replace("%2F", "/").replace("%25", "%") for key in path.split("/")]
        node: dict[str, Any] = nested
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return nested


def _own_storages(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory, as safetensors wants them."""
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in flat.items():
        value = value.detach().cpu().contiguous()
        pointer = value.untyped_storage().data_ptr()
        if pointer in seen or value.untyped_storage().nbytes() != value.nbytes:
            value = value.clone(memory_format=torch.contiguous_format)
        seen.add(pointer)
        own[name] = value
    return own


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the state was never completed, or isn't one. {_REMEDY}")
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not JSON ({error}): it is truncated or damaged. {_REMEDY}"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a training state of format {FORMAT}. {_REMEDY}")
    absent = sorted({"meta", "empty", "bytes", "crc32"} - record.keys())
    if absent:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}. {_REMEDY}")
    return record


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            value = zlib.crc32(chunk, value)
    return value


def _sync(path: Path) -> None:
    """Make a file's or a directory's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
