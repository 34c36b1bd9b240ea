"""Configurations: what they derive and what they refuse."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvcot.errors import ConfigError
from gvcot.model.config import (
    BAGEL_RESIZE,
    BAGEL_VIT_RESIZE,
    ImagesConfig,
    LLMConfig,
    ResizeConfig,
    TokenIds,
    UnifiedConfig,
)

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


# BAGEL's steps by hand. Sides are rounded to whole tokens with Python's round, halves to even.
LATENT_SIZES = [
    ((1200, 1600), (768, 1024)),  # x .64 by the longer side
    ((300, 400), (512, 688)),  # x 512/300 by the shorter side; 683 is 42.7 tokens
    ((512, 512), (512, 512)),
    ((1000, 700), (992, 704)),  # not scaled; 62.5 and 43.75 tokens
    # x 5.12: (512, 25600), too many pixels; x .1378: (71, 3528), so (64, 3520); x .29: (19, 1024)
    ((100, 5000), (16, 1024)),
]
VIT_SIZES = [
    ((768, 1024), (728, 980)),  # 735 is 52.5 patches
    ((512, 688), (518, 686)),  # not scaled
    ((64, 64), (224, 224)),
    ((16, 1024), (14, 980)),  # x 14: (224, 14336); x .5625: (126, 8064); x .1215: (15, 980) -> (14, 980)
]


@pytest.mark.parametrize(("size", "expected"), LATENT_SIZES)
def test_sizes_of_encoded_images(size, expected):
    assert BAGEL_RESIZE.fit(*size, 16) == expected
    assert BAGEL_RESIZE.fit(*size[::-1], 16) == expected[::-1]


@pytest.mark.parametrize(("size", "expected"), VIT_SIZES)
def test_sizes_of_images_shown_to_the_vit(size, expected):
    assert BAGEL_VIT_RESIZE.fit(*size, 14) == expected


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_any_image_fits_the_tables(height, width):
    for rule, stride in ((BAGEL_RESIZE, 16), (BAGEL_VIT_RESIZE, 14)):
        size = rule.fit(height, width, stride)
        assert max(size) <= rule.longest
        assert min(size) >= stride
        assert size[0] % stride == size[1] % stride == 0
        assert rule.fit(*size, stride) == size or min(size) < rule.shortest


def test_a_recipe_s_sizes_go_into_the_model(tiny_config):
    assert tiny_config.fit(70, 64) == (70, 64)  # the tiny model takes images as they are, or refuses them
    assert tiny_config.vit.fit(64, 64) == (64, 64)
    sizes = ImagesConfig(latent=ResizeConfig(longest=96, shortest=32), vit=ResizeConfig(longest=48))
    config = tiny_config.with_images(sizes)
    assert config.fit(200, 100) == (96, 48)
    assert config.vit.fit(96, 48) == (48, 32)  # 24 px are 1.5 patches
    assert UnifiedConfig.from_dict(config.to_dict()) == config
    assert tiny_config.with_images(ImagesConfig()) == tiny_config
    with pytest.raises(
        ConfigError, match="longest=200 px exceeds the latent position table: choose at most 128"
    ):
        tiny_config.with_images(ImagesConfig(latent=ResizeConfig(longest=200)))
    with pytest.raises(ConfigError, match="0 <= shortest <= longest"):
        ResizeConfig(longest=10, shortest=20)
