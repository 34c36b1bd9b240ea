"""Scenes written as datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gvcot.data import scenes
from gvcot.data.pairs.write import write

KINDS = ("folder", "parquet", "webdataset")
NUM = 14


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first training scenes in each container, 4 a file. Not to be changed."""
    root = tmp_path_factory.mktemp("pairs")
    for kind in KINDS:
        write(iter(scenes.samples("train", range(NUM))), root / kind, kind, shard=4)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Path]:
    """export(kind, num): a dataset of one's own."""

    def make(kind: str = "folder", num: int = 6) -> Path:
        write(iter(scenes.samples("train", range(num))), tmp_path / kind, kind, shard=4)
        return tmp_path / kind

    return make
