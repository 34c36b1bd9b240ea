"""Golden cases of the official model (see tests/data/bagel_tiny/README.md), and a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gvcot.model import flow
from gvcot.model.checkpoint import load_unified
from gvcot.model.compute import Attention
from gvcot.model.config import TokenIds, UnifiedConfig
from gvcot.model.sequence import Segment
from gvcot.model.unified import UnifiedModel

GOLDEN = Path(__file__).parents[2] / "data" / "bagel_tiny"
TOKEN_IDS = TokenIds(bos=1, eos=2, boi=3, eoi=4)


@dataclass(frozen=True)
class Case:
    """One golden file: its sequences as segments, and its tensors by name."""

    tensors: dict[str, Tensor]
    samples: list[list[Segment]]
    names: list[list[str]]
    """Segment names, e.g. "03_noise"."""

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def joined(self, field: str) -> Tensor:
        """An output of all noisy segments, in pack order."""
        keys = [f"out.s{s}.{name}.{field}" for s, names in enumerate(self.names) for name in names]
        return torch.cat([self.tensors[key] for key in keys if "_noise" in key])


def grid_of(latent_CHW: Tensor) -> tuple[int, int]:
    return latent_CHW.shape[1] // 2, latent_CHW.shape[2] // 2


def _segment(tensors: dict[str, Tensor], prefix: str, kind: str, drop: bool) -> Segment:
    if kind == "text":
        return Segment.text(tensors[f"{prefix}.ids"], drop=drop)
    if kind == "vit":
        return Segment.vit(tensors[f"{prefix}.pixels"], drop=drop)
    latent = tensors[f"{prefix}.latent" if kind == "vae" else f"{prefix}.x0"]
    tokens_1ND = flow.patchify(latent[None], 2)
    if kind == "vae":
        return Segment.vae(tokens_1ND[0], grid_of(latent), drop=drop)
    t = tensors[f"{prefix}.t"]
    x_1ND = flow.interpolate(tokens_1ND, tensors[f"{prefix}.eps"][None], t[None])
    return Segment.noise(x_1ND[0], t, grid_of(latent))


def load_case(name: str) -> Case:
    tensors = load_file(GOLDEN / "cases" / f"{name}.safetensors")
    samples, all_names = [], []
    for sample in ("s0", "s1"):
        names = sorted({key.split(".")[2] for key in tensors if key.startswith(f"in.{sample}.")})
        if names:
            parts = [(f"in.{sample}.{n}", n.split("_")[1], n.endswith("_dropped")) for n in names]
            samples.append([_segment(tensors, *part) for part in parts])
            all_names.append(names)
    return Case(tensors=tensors, samples=samples, names=all_names)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def golden_case() -> Callable[[str], Case]:
    return load_case


@pytest.fixture(scope="session", params=["dense", "segments"])
def attention(request: pytest.FixtureRequest) -> Attention:
    """Both ways to compute attention: what holds for one holds for the other."""
    return request.param


@pytest.fixture
def golden_model(official_model: UnifiedModel, attention: Attention) -> UnifiedModel:
    """The official tiny random model."""
    official_model.attention = attention
    return official_model


@pytest.fixture(scope="session")
def official_model(tmp_path_factory: pytest.TempPathFactory) -> UnifiedModel:
    """The official tiny random model, loaded through the public loader."""
    folder = tmp_path_factory.mktemp("bagel")
    for name in ("config.json", "llm_config.json", "vit_config.json"):
        (folder / name).write_bytes((GOLDEN / name).read_bytes())
    (folder / "ema.safetensors").write_bytes((GOLDEN / "weights.safetensors").read_bytes())
    return load_unified(folder, token_ids=TOKEN_IDS)


@pytest.fixture(scope="session")
def tiny_config() -> UnifiedConfig:
    return UnifiedConfig.tiny(
        vocab=40, token_ids=TOKEN_IDS, hidden=32, layers=2, mlp=48, vit_hidden=16, vit_heads=2, vit_mlp=16
    )


@pytest.fixture
def tiny_model(tiny_config: UnifiedConfig, attention: Attention) -> UnifiedModel:
    """A small model whose output layer is not zero."""
    model = randomised(tiny_config)
    model.attention = attention
    return model


def randomised(config: UnifiedConfig) -> UnifiedModel:
    model = UnifiedModel(config)
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        model.llm2vae.weight.normal_(0, 0.1, generator=generator)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
    return model


@pytest.fixture(scope="session")
def rel() -> Callable[[Tensor, Tensor], float]:
    """max |a - b| / max |b|, the measure of the golden tolerances."""

    def relative(a: Tensor, b: Tensor) -> float:
        assert a.shape == b.shape
        return ((a - b).abs().max() / b.abs().max()).item()

    return relative


@pytest.fixture
def folder_7b(tmp_path: Path) -> Path:
    """BAGEL-7B-MoT's configuration, with a `config.json` that says nothing, as BAGEL's loader needs none."""
    llm = {
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    }
    vit = {
        "hidden_size": 1152,
        "image_size": 980,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    }
    for name, content in (("config", {"model_type": "bagel"}), ("llm_config", llm), ("vit_config", vit)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path
