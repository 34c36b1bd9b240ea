"""A folder in BAGEL's format goes through the same code as the tiny model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gvcot import bagel_mini as mini
from gvcot import seeds
from gvcot.chain import Chain
from gvcot.data import scenes
from gvcot.model.flux_ae import FluxAE
from gvcot.model.pretrained import Pretrained, load_pretrained
from gvcot.model.sequence import Segment, pack
from gvcot.sampler import condition_of, draw, ode_denoiser
from gvcot.types import ChainConfig, ImagePhase


@pytest.fixture(scope="module")
def policy(bagel_mini: Path) -> Pretrained:
    return load_pretrained(bagel_mini)


def drawn_chain(policy: Pretrained, indices: tuple[int, ...]):
    config = policy.model.config
    samples = [scenes.generate(0, i) for i in indices]
    chain = Chain(ChainConfig(), policy.tokenizer, has_vit=config.vit is not None)
    return draw(
        policy.model,
        policy.codec,
        chain,
        condition_of(samples, config, policy.codec, chain),
        denoise=ode_denoiser(2, 3.0),
        noise=lambda name, shape: seeds.noise_BND(
            [seeds.derive(name, s.sample_id) for s in samples], shape[1:]
        ),
    )


def test_the_folder_has_bagel_s_files(bagel_mini: Path) -> None:
    weights = {"ema.safetensors", "ae.safetensors"}
    tokenizer = {"vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json"}
    configs = {"config.json", "llm_config.json", "vit_config.json"}
    assert {path.name for path in bagel_mini.iterdir()} == weights | tokenizer | configs | {"record.json"}
    assert json.loads((bagel_mini / "vit_config.json").read_text())["num_hidden_layers"] == 3  # two are built


def test_the_same_seed_gives_the_same_folder(bagel_mini: Path, tmp_path: Path) -> None:
    mini.make(tmp_path)

    def digests(folder: Path) -> dict[str, str]:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}

    assert digests(tmp_path) == digests(bagel_mini)


def test_a_chain_is_drawn(policy: Pretrained) -> None:
    assert isinstance(policy.codec, FluxAE)
    both = drawn_chain(policy, (0, 1))
    assert both.images.keys() == {"x_cot", "x_edit"}
    x_cot, x_edit = both.trajectory.phases
    assert isinstance(x_cot, ImagePhase)
    assert isinstance(x_edit, ImagePhase)
    assert x_cot.grid == (4, 4)
    assert x_cot.feedback_vit_B3HW is not None
    assert x_cot.feedback_vit_B3HW.shape == (2, 3, 70, 70)  # 64 px are 4.6 patches of 14
    for image in both.images.values():
        assert image.shape == (2, 3, 64, 64)
        assert image.isfinite().all()
        assert image.std() > 0.01
    # of each prompt the same chain, whatever stands beside it
    alone = drawn_chain(policy, (1,))
    lengths = {len(policy.tokenizer.encode(scenes.generate(0, i).instruction)) for i in (0, 1)}
    assert len(lengths) == 2
    for name in both.images:
        torch.testing.assert_close(both.images[name][1], alone.images[name][0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_what_was_drawn_step_by_step_is_what_one_pack_says(policy: Pretrained) -> None:
    """The velocity of x_edit on the cache equals the one in a packed sequence, at this layout too."""
    config = policy.model.config
    chain = Chain(ChainConfig(), policy.tokenizer, has_vit=True)
    sample = scenes.generate(0, 3)
    condition = condition_of([sample], config, policy.codec, chain)
    x_cot, noisy = seeds.noise_BND([1], (16, 64))[0], seeds.noise_BND([2], (16, 64))[0]
    assert condition.source_vit_B3HW is not None
    context = [*chain.prefix(condition, 0), *chain.feedback(x_cot, condition.source_vit_B3HW[0], (4, 4))]
    cache = policy.model.new_cache(1)
    for segment in context:
        policy.model.prefill(cache, [segment])
    stepwise = policy.model.velocity(cache, noisy[None], torch.tensor([0.4]), (4, 4))[0]
    packed = policy.model(pack([[*context, Segment.noise(noisy, 0.4, (4, 4))]], config)).velocity_MD
    assert ((stepwise - packed).abs().max() / packed.abs().max()).item() < 1e-5


def test_any_words_and_any_picture_are_edited(bagel_mini: Path, tmp_path: Path) -> None:
    from experiments.edit import run_edit

    Image.fromarray(np.full((50, 90, 3), 90, dtype=np.uint8)).save(tmp_path / "in.jpg")
    out = run_edit(tmp_path / "in.jpg", "Entferne das Zebra! 🦓", bagel_mini, tmp_path / "out", num_steps=1)
    assert Image.open(out / "x_edit.png").size == (
        112,
        64,
    )  # x 64/50 by the shorter side: 115 px are 7.2 tokens
