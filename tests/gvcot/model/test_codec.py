"""The small codec: geometry, statistics and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gvcot.errors import CheckpointError, ConfigError, DataError
from gvcot.model.checkpoint import load_codec, save_codec
from gvcot.model.codec import TinyAE
from gvcot.model.config import CodecConfig
from gvcot.model.weight_files import CODEC_FILE

SIZES = CodecConfig(kind="tiny", width=8)


@pytest.fixture
def codec() -> TinyAE:
    torch.manual_seed(0)
    return TinyAE(width=8).requires_grad_(False)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 64, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_an_eighth_of_the_resolution_and_back(codec: TinyAE, images: torch.Tensor) -> None:
    latent = codec.encode(images)
    assert latent.shape == (6, 16, 8, 6)
    decoded = codec.decode(latent)
    assert decoded.shape == images.shape
    assert codec.decode(latent * 1e4).abs().max() <= 1.0


def test_encoding_is_deterministic_and_by_image(codec: TinyAE, images: torch.Tensor) -> None:
    assert torch.equal(codec.encode(images), codec.encode(images))
    torch.testing.assert_close(codec.encode(images)[2:3], codec.encode(images[2:3]))


def test_statistics_give_unit_variance_and_leave_the_decoding_alone(
    codec: TinyAE, images: torch.Tensor
) -> None:
    before = codec.decode(codec.encode(images))
    codec.set_statistics(codec.moments(images)[0])
    latent = codec.encode(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latent.mean(1), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latent.std(1), torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(codec.decode(codec.encode(images)), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 3, 64, 63), (1, 4, 64, 64)])
def test_images_it_cannot_take_are_refused(codec: TinyAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="divisible by 8"):
        codec.encode(torch.zeros(shape))


def test_a_width_that_group_norm_cannot_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        TinyAE(width=12)


def test_saved_and_loaded_bit_for_bit(codec: TinyAE, images: torch.Tensor, tmp_path: Path) -> None:
    codec.set_statistics(codec.moments(images)[0])
    save_codec(codec, tmp_path)
    loaded = load_codec(tmp_path, SIZES)
    assert torch.equal(loaded.encode(images), codec.encode(images))
    assert torch.equal(loaded.decode(codec.encode(images)), codec.decode(codec.encode(images)))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_half_precision_on_disk_is_read_as_fp32(codec: TinyAE, images: torch.Tensor, tmp_path: Path) -> None:
    save_codec(codec, tmp_path, dtype=torch.float16)
    loaded = load_codec(tmp_path, SIZES)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.encode(images), codec.encode(images), atol=0.02, rtol=0.02)


def test_a_truncated_file_is_named(codec: TinyAE, tmp_path: Path) -> None:
    save_codec(codec, tmp_path)
    path = tmp_path / CODEC_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=CODEC_FILE):
        load_codec(tmp_path, SIZES)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=CODEC_FILE):
        load_codec(tmp_path, SIZES)


@pytest.mark.parametrize(("z", "width"), [(16, 16), (8, 8)])
def test_a_codec_of_other_sizes_is_named(codec: TinyAE, tmp_path: Path, z: int, width: int) -> None:
    save_codec(codec, tmp_path)
    with pytest.raises(CheckpointError, match=rf"does not hold a TinyAE with z={z}, width={width}"):
        load_codec(tmp_path, CodecConfig(kind="tiny", z=z, width=width))
