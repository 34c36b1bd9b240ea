"""Encoded scenes for a very small model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gvcot.data.encoded import EncodedScenes, load_encoded
from gvcot.data.source import SceneSource
from gvcot.model.pretrained import load_pretrained
from sft.config import SFTConfig


@pytest.fixture(scope="session")
def encoded(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EncodedScenes:
    """The first 16 training scenes."""
    policy = load_pretrained(policy_folder)
    return load_encoded(
        policy.codec,
        policy.model.config,
        SceneSource(seed=0, size=64),
        cache_dir=tmp_path_factory.mktemp("encoded"),
        num_samples=16,
        size=64,
        shard=16,
    )


@pytest.fixture
def config(policy_folder: Path) -> Callable[..., SFTConfig]:
    """config(mix={...}, ...): a stage of a few steps from `policy_folder`."""

    def make(**changes: Any) -> SFTConfig:
        folder = str(policy_folder)
        plain = {
            "name": "test",
            "codec": folder,
            "init": folder,
            "mix": {"gvcot": 1.0},
            "steps": 4,
            "batch_size": 4,
        }
        return SFTConfig(**(plain | changes))

    return make
