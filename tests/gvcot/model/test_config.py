"""Configurations: what they derive and what they refuse."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from gvcot.errors import ConfigError
from gvcot.model.config import LLMConfig, TokenIds, UnifiedConfig

IDS = TokenIds(bos=1, eos=2, boi=3, eoi=4)


def tiny(**overrides):
    return UnifiedConfig.tiny(**{"vocab": 40, "token_ids": IDS} | overrides)


def test_grid_of_an_image():
    config = tiny()
    assert config.latent_grid(64, 64) == (4, 4)
    assert config.latent_grid(64, 96) == (4, 6)
    assert config.latent_dim == 64
    with pytest.raises(ConfigError, match="multiples of 16"):
        config.latent_grid(60, 64)
    with pytest.raises(ConfigError, match="at most 128 px"):
        config.latent_grid(64, 144)


def test_vit_patch_follows_the_image_size():
    assert tiny().vit.patch == 16
    assert tiny(image_size=96).vit.patch == 24
    assert tiny(vit_patch=8).vit.patch == 8
    assert tiny(vit=False).vit is None


@pytest.mark.parametrize("overrides", [{}, {"vit": False}, {"hidden": 64, "shift": 3.0}])
def test_dict_round_trip(overrides):
    config = tiny(**overrides)
    assert UnifiedConfig.from_dict(config.to_dict()) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_unknown_and_missing_keys():
    data = tiny().to_dict()
    with pytest.raises(ConfigError, match="unknown key 'hiden' in llm; did you mean 'hidden'"):
        UnifiedConfig.from_dict(data | {"llm": data["llm"] | {"hiden": 3}})
    del data["max_latent"]
    with pytest.raises(ConfigError, match="lacks max_latent"):
        UnifiedConfig.from_dict(data)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden": 130}, "even head size"),
        ({"kv_heads": 3}, "multiple of kv_heads"),
    ],
)
def test_impossible_decoders(values, message):
    with pytest.raises(ConfigError, match=message):
        LLMConfig(**{"hidden": 128, "layers": 1, "heads": 4, "kv_heads": 2, "mlp": 8, "vocab": 9} | values)


def test_control_tokens_must_fit_and_differ():
    with pytest.raises(ConfigError, match="do not fit"):
        tiny(vocab=4)
    with pytest.raises(ConfigError, match="differ"):
        tiny(token_ids=TokenIds(bos=1, eos=1, boi=3, eoi=4))


def test_configs_do_not_import_torch():
    code = "import sys, gvcot.model.config, gvcot.model.bagel_json; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
