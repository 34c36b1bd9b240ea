"""Where a folder's tensors lie, and what the headers of the files say. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gvcot.errors import CheckpointError

WEIGHTS = "ema.safetensors"
"""The model, named as BAGEL names its averaged weights."""

CODEC_FILE = "ae.safetensors"
"""The codec, named as BAGEL names it."""

INDEX = ".safetensors.index.json"
"""Ends the name of a list of shards."""

Shape = tuple[int, ...]


def find_weights(folder: Path) -> list[Path]:
    """The files that hold a folder's model; none where there are none.

    `ema.safetensors` before `model.safetensors`, then the shards of an index, `ema` again before others. A
    codec that an index also lists is left out: it has a file of its own.

    Raises:
        CheckpointError: an index is unreadable, or shards are not there (all of them are listed).
    """
    for name in (WEIGHTS, "model.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    indices = sorted(folder.glob(f"*{INDEX}"), key=lambda path: (not path.name.startswith("ema"), path.name))
    return _shards(indices[0]) if indices else []


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text())["weight_map"].values()) - {CODEC_FILE}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f'{index} is not an index of safetensors shards ({error!r}); expected {{"weight_map": {{name: '
            "file}}}; restore the original file"
        ) from None
    foreign = sorted(name for name in names if Path(name).name != name)
    if foreign:
        raise CheckpointError(f"{index} names files outside its folder: {foreign}; shards lie beside it")
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise CheckpointError(f"{index} lists shards that are not there: {missing}; copy or download them")
    return [index.parent / name for name in sorted(names)]


def read_headers(files: Sequence[Path]) -> dict[Path, dict[str, Shape]]:
    """Names and shapes in each file.

    Raises:
        CheckpointError: a file is unusable, or a tensor is in two of them.
    """
    headers = {path: read_header(path) for path in files}
    seen: dict[str, Path] = {}
    twice = []
    for path, header in headers.items():
        twice += [f"{name}: {seen[name].name} and {path.name}" for name in header if name in seen]
        seen |= dict.fromkeys(header, path)
    if twice:
        listed = "\n    ".join(twice)
        raise CheckpointError(
            f"{files[0].parent}: tensors in two files:\n    {listed}\nkeep one set of shards"
        )
    return headers


def read_header(path: Path) -> dict[str, Shape]:
    """Names and shapes of a safetensors file.

    Raises:
        CheckpointError: the file is missing, cut short, or not safetensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected the model's weights there")
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        text = file.read(header_size) if header_size <= size - 8 else b""
    try:
        header = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file or is cut short; copy or download it again")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    expected = 8 + header_size + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if size != expected:
        raise CheckpointError(
            f"{path} has {size} bytes, its header says {expected}: it is cut short or damaged; "
            "copy or download it again"
        )
    return {name: tuple(entry["shape"]) for name, entry in tensors.items()}


def check_names(where: Path, what: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Compare what is stored with what is needed, both ways.

    Args:
        where: file or folder, for the message.
        what: what it should hold.

    Raises:
        CheckpointError: lists every tensor that is missing, unexpected or of another shape.
    """
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name}: {found[name]} in the file, {shape} in the configuration"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    listed = [
        f"  {len(names)} {kind}:\n    " + "\n    ".join(names) for kind, names in problems.items() if names
    ]
    if listed:
        raise CheckpointError(
            f"{where} does not hold {what}:\n" + "\n".join(listed) + "\n"
            "use the config files that were saved with these weights"
        )
