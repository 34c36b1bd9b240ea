"""Set-up shared by all tests: one torch thread, few property examples, shape checks of tensor formulas, and a
very small policy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from gvcot.chain import Chain
    from gvcot.model.pretrained import Pretrained
    from gvcot.sampler import Drawn
    from rollout.config import RolloutConfig

# The pure tensor formulas check their annotated shapes at every call while the tests run.
FORMULAS = ["gvcot.model.flow", "rollout.sde", "rl.advantage", "rl.credit", "rl.losses"]
install_import_hook(FORMULAS, "beartype.beartype")

torch.set_num_threads(1)

settings.register_profile("gvcot", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("gvcot")


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved checkpoint of a very small model with random weights, whose drawings are not trivial."""
    from gvcot.data import scenes
    from gvcot.data.images import to_tensor
    from gvcot.model.codec import TinyAE
    from gvcot.model.config import CodecConfig, UnifiedConfig
    from gvcot.model.pretrained import Pretrained, save_pretrained
    from gvcot.model.tokenizer import WordTokenizer
    from gvcot.model.unified import UnifiedModel

    tokenizer = WordTokenizer()
    config = UnifiedConfig.tiny(
        vocab=tokenizer.vocab_size,
        token_ids=tokenizer.token_ids,
        hidden=32,
        layers=2,
        heads=2,
        kv_heads=1,
        mlp=64,
        vit_hidden=32,
        vit_mlp=64,
        codec=CodecConfig(kind="tiny", width=8),
    )
    torch.manual_seed(0)
    codec, model = TinyAE(width=8), UnifiedModel(config)
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    images = to_tensor([s.source_HW3 for s in scenes.samples("val", range(16))])
    with torch.no_grad():
        model.llm2vae.weight.normal_(0, 0.1, generator=generator)  # new models predict no velocity at all
        codec.set_statistics(codec.moments(images)[0])
        raw = codec.decoder(codec.moments(images)[0])
        codec.decoder[-1].weight.mul_(0.5 / raw.std())  # pictures of some contrast, so that edits have a size
    folder = tmp_path_factory.mktemp("policy") / "model"
    save_pretrained(folder, Pretrained(model=model, codec=codec, tokenizer=tokenizer), {"made": "by tests"})
    return folder


@pytest.fixture
def policy(policy_folder: Path) -> Pretrained:
    """The model of `policy_folder`; each test gets its own copy."""
    from gvcot.model.pretrained import load_pretrained

    return load_pretrained(policy_folder)


@pytest.fixture(scope="session")
def bagel_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in BAGEL's official format at the smallest size, with random weights."""
    from gvcot.bagel_mini import make

    folder = tmp_path_factory.mktemp("bagel") / "mini"
    make(folder)
    return folder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Encoded scenes of the whole stages; filling it takes some seconds, once."""
    return str(tmp_path_factory.mktemp("cache"))


@dataclass(kw_only=True)
class Rolled:
    """A rollout of a policy, and all that is needed to replay it."""

    policy: Pretrained
    chain: Chain
    config: RolloutConfig
    drawn: Drawn
    prompt_B: torch.Tensor
    rows: torch.Tensor
    """All chains."""


@pytest.fixture
def roll(policy: Pretrained) -> Callable[..., Rolled]:
    """roll(indices, group, ...): stochastic chains of `policy`, G per training scene."""
    from gvcot.chain import Chain
    from gvcot.data import scenes
    from gvcot.sampler import condition_of, draw
    from gvcot.types import ChainConfig, Window
    from rollout.config import RolloutConfig
    from rollout.sample import chain_noise, window_denoiser

    def make(
        indices: tuple[int, ...] = (0, 1),
        group: int = 2,
        *,
        config: RolloutConfig | None = None,
        windows: dict[str, Window] | None = None,
        chain: ChainConfig | None = None,
    ) -> Rolled:
        config = config or RolloutConfig(num_steps=4, shift=2.0)
        windows = windows or {"x_cot": Window(start=1, size=2), "x_edit": Window(start=0, size=2)}
        bound = Chain(chain or ChainConfig(), policy.tokenizer, has_vit=True)
        samples = [scenes.generate(0, i) for i in indices]
        chain_seeds = [1000 * i + g for i in indices for g in range(group)]
        drawn = draw(
            policy.model,
            policy.codec,
            bound,
            condition_of(samples, policy.model.config, policy.codec, bound),
            denoise=window_denoiser(config, windows, chain_seeds),
            noise=chain_noise(chain_seeds),
            chains_per_prompt=group,
        )
        prompt_B = torch.arange(len(indices)).repeat_interleave(group)
        rows = torch.arange(len(prompt_B))
        return Rolled(policy=policy, chain=bound, config=config, drawn=drawn, prompt_B=prompt_B, rows=rows)

    return make


@pytest.fixture
def two_machines() -> Iterator[str]:
    """The address of a Ray cluster of two machines with one CPU each, as far as Ray can tell."""
    from rl import cluster  # before Ray: it sets what Ray reads when imported

    from ray.cluster_utils import Cluster  # isort: skip

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    machines.add_node(num_cpus=1)
    assert machines.address is not None
    yield machines.address
    cluster.stop()
    machines.shutdown()
