"""Which dataset of image pairs is read, and how its samples are made to fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gvcot.errors import ConfigError

CONTAINERS: dict[str, str] = {
    "folder": "gvcot.data.pairs.containers:Folder",
    "parquet": "gvcot.data.pairs.containers:Parquet",
    "webdataset": "gvcot.data.pairs.containers:WebDataset",
}
"""How a dataset may be stored: name -> "module:Class"."""

Resize = Literal["square", "crop"]
"""How images of another size than the run's are made to fit; see `gvcot.data.pairs.prepare`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsConfig:
    """A dataset of image pairs."""

    path: str
    """The folder or file; relative to where the command is run."""

    kind: str = "auto"
    """folder, parquet, webdataset or "package.module:Class"; auto: told from what lies at `path`."""

    resize: Resize | None = None
    """How images of another size are made to fit the run's square. "square": resized, whatever their shape;
    "crop": their largest centred square is, which keeps shapes and loses edges (a sample whose region lies
    there is bad). None: they are bad samples."""

    tasks: tuple[str, ...] = ()
    """Names of tasks that are known beside the paper's 19."""

    buffer: int = 1_000
    """Of WebDataset shards, which are shuffled as wholes: places of the shuffle buffer that their samples go
    through, so that reads stay near each other. 0: one order over all samples, as in the other containers."""

    max_bad_share: float = 0.01
    """Reading stops when a larger share of the samples is bad."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(f"max_bad_share: expected a share from 0 to 1; got {self.max_bad_share}")
        if self.buffer < 0:
            raise ConfigError(f"buffer: expected 0 or more samples; got {self.buffer}")

    @property
    def name(self) -> str:
        """What evaluations on it are called: the last part of its path, without an ending."""
        return Path(self.path).resolve().stem
