"""Edits of some scenes, and a very small judge with random weights."""

from __future__ import annotations

import pytest
import torch

from experiments.learned_judge.config import DataConfig, NetworkConfig
from experiments.learned_judge.data import Pairs, load_pairs
from experiments.learned_judge.model import LearnedJudge, new_judge
from experiments.learned_judge.tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def network() -> NetworkConfig:
    return NetworkConfig(width=64, heads=2, mlp=64, vit_layers=1, layers=2, vocab=480)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    cache_dir = str(tmp_path_factory.mktemp("edits"))
    return DataConfig(split="val", first_scene=0, num_scenes=16, cache_dir=cache_dir)


@pytest.fixture(scope="session")
def pairs(data: DataConfig) -> Pairs:
    """96 edits of 16 scenes."""
    return load_pairs(data)


@pytest.fixture(scope="session")
def judge(network: NetworkConfig, pairs: Pairs) -> LearnedJudge:
    torch.manual_seed(0)
    made = new_judge(network, make_tokenizer(pairs.instructions, network.vocab))
    with torch.no_grad():  # new networks give all digits nearly the same probability
        made.network.get_input_embeddings().weight.mul_(20)
    made.network.eval()
    return made
