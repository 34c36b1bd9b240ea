"""Checkpoints in BAGEL's format: names of the 7B model, strictness, damage, corrections."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gvcot.errors import CheckpointError
from gvcot.model.checkpoint import load_unified, manifest, save_unified
from gvcot.model.config import QWEN2_TOKEN_IDS, CodecConfig, LLMConfig, UnifiedConfig, ViTConfig
from gvcot.model.unified import UnifiedModel

PATCH = "vit_model.vision_model.embeddings.patch_embedding.weight"


@pytest.fixture
def saved(tmp_path, tiny_model):
    save_unified(tmp_path / "model", tiny_model)
    return tmp_path / "model"


def edit_weights(folder, change):
    state = load_file(folder / "ema.safetensors")
    change(state)
    save_file(state, folder / "ema.safetensors")


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_names_and_shapes_of_the_7b_model(golden_dir):
    expected = json.loads((golden_dir / "manifest_7b.json").read_text())
    config = UnifiedConfig(
        llm=LLMConfig(hidden=3584, layers=28, heads=28, kv_heads=4, mlp=18944, vocab=152064),
        vit=ViTConfig(hidden=1152, layers=26, heads=16, mlp=4304, patch=14, max_side=70),
        codec=CodecConfig(kind="flux"),
        max_latent=64,
        token_ids=QWEN2_TOKEN_IDS,
    )
    ours = manifest(config)
    assert ours == {name: tuple(shape) for name, shape in expected["bagel"].items()}
    assert len(ours) == expected["num_tensors"]["bagel"] == 1223


def test_round_trip_is_exact(saved, tiny_model):
    loaded = load_unified(saved)
    assert loaded.config == tiny_model.config
    expected = tiny_model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert not loaded.latent_pos_embed.pos_embed.requires_grad
    assert loaded.vae2llm.weight.requires_grad


def test_round_trip_without_vit(tmp_path, tiny_config):
    config = UnifiedConfig.tiny(
        vocab=40, token_ids=tiny_config.token_ids, hidden=32, layers=1, mlp=32, vit=False
    )
    save_unified(tmp_path, UnifiedModel(config))
    assert not (tmp_path / "vit_config.json").exists()
    assert load_unified(tmp_path).config == config


def test_dtype_is_the_callers(saved):
    assert load_unified(saved, dtype=torch.bfloat16).vae2llm.weight.dtype == torch.bfloat16


def test_every_mismatch_is_listed_at_once(saved):
    def change(state):
        del state["llm2vae.bias"]
        state["stranger.weight"] = torch.zeros(2)
        state["vae2llm.bias"] = torch.zeros(5)

    edit_weights(saved, change)
    with pytest.raises(CheckpointError) as error:
        load_unified(saved)
    text = str(error.value)
    assert "1 missing:\n    llm2vae.bias" in text
    assert "1 unexpected:\n    stranger.weight" in text
    assert "vae2llm.bias: (5,) in the file, (32,) in the configuration" in text


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_cut_files_are_named(saved, keep):
    path = saved / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"ema\.safetensors.*cut short.*copy or download it again"):
        load_unified(saved)


def test_a_pickle_is_not_opened(saved, tiny_model):
    torch.save(tiny_model.state_dict(), saved / "ema.safetensors")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_unified(saved)


def test_missing_files_are_named(saved):
    (saved / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"ema\.safetensors does not exist"):
        load_unified(saved)
    (saved / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        load_unified(saved)


def test_convolution_patch_weight_is_reordered(saved, tiny_model):
    expected = tiny_model.state_dict()[PATCH]

    def change(state):
        state[PATCH] = expected.reshape(-1, 16, 16, 3).permute(0, 3, 1, 2).contiguous()

    edit_weights(saved, change)
    assert torch.equal(load_unified(saved).state_dict()[PATCH], expected)


def test_stale_table_sizes_and_switches_are_corrected(saved, tiny_config):
    edit_json(saved / "config.json", max_latent_size=5, vit_max_num_patch_per_side=3)
    edit_json(saved / "llm_config.json", qk_norm=False, tie_word_embeddings=True)
    assert load_unified(saved).config == tiny_config


def test_official_vit_config_counts_one_layer_more(golden_dir, tiny_config):
    stated = json.loads((golden_dir / "vit_config.json").read_text())["num_hidden_layers"]
    config = UnifiedConfig.from_bagel_dir(golden_dir, token_ids=tiny_config.token_ids)
    assert (stated, config.vit.layers) == (3, 2)
    assert config.to_bagel_json()["vit_config"]["num_hidden_layers"] == 3


def test_unknown_control_tokens_are_asked_for(golden_dir):
    with pytest.raises(CheckpointError, match="pass token_ids="):
        UnifiedConfig.from_bagel_dir(golden_dir)


def test_official_vocabulary_implies_the_qwen_control_tokens(golden_dir, tmp_path):
    for name in ("config.json", "llm_config.json", "vit_config.json"):
        shutil.copy(golden_dir / name, tmp_path / name)
    (tmp_path / "llm_config.json").chmod(0o644)
    edit_json(tmp_path / "llm_config.json", vocab_size=152064)
    assert UnifiedConfig.from_bagel_dir(tmp_path).token_ids == QWEN2_TOKEN_IDS
