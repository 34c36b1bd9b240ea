"""BAGEL's autoencoder against numbers of the official one (README in tests/data/bagel_tiny)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gvcot.errors import CheckpointError, ConfigError, DataError
from gvcot.model.checkpoint import build_codec, load_codec, save_codec
from gvcot.model.config import CodecConfig
from gvcot.model.flux_ae import FluxAE

TOL = 2e-5
SMALLEST = CodecConfig(kind="flux", width=32)


def by_rule(key: str, shape: tuple[int, ...]) -> Tensor:
    """The golden weights: a hash of name and index, scaled by what the tensor is."""
    with np.errstate(over="ignore"):
        x = np.arange(np.prod(shape), dtype=np.uint32) * np.uint32(2654435761)
        x += np.uint32(zlib.crc32(key.encode()))
        x = (x ^ (x >> np.uint32(16))) * np.uint32(2246822507)
        x = (x ^ (x >> np.uint32(13))) * np.uint32(3266489909)
        x ^= x >> np.uint32(16)
    u = x.astype(np.float64) / 2**31 - 1
    if len(shape) == 4:
        u *= np.sqrt(3 / np.prod(shape[1:]))
    elif key.endswith(".weight"):
        u = 1 + 0.2 * u
    else:
        u *= 0.1
    return torch.from_numpy(u.reshape(shape).astype(np.float32))


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, Tensor]:
    return load_file(golden_dir / "ae" / "expected.safetensors")


@pytest.fixture(scope="module")
def codec(golden: dict[str, Tensor]) -> FluxAE:
    with torch.device("meta"):
        codec = FluxAE(width=32)
    state = {name: by_rule(name, tuple(tensor.shape)) for name, tensor in codec.state_dict().items()}
    for key in (k for k in golden if k.startswith("check.") and k != "check.sum_of_squares"):
        values = state[key.removeprefix("check.")].flatten()
        assert torch.equal(values[: golden[key].numel()], golden[key]), key
    squares = sum(tensor.double().square().sum() for tensor in state.values())
    torch.testing.assert_close(squares, golden["check.sum_of_squares"])
    codec.load_state_dict(state, assign=True)
    return codec.requires_grad_(False)


def shapes(codec: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}


def test_names_and_shapes_of_both_sizes(golden_dir: Path) -> None:
    full = json.loads((golden_dir / "manifest_7b.json").read_text())["ae"]
    small = json.loads((golden_dir / "ae" / "shapes.json").read_text())["tensors"]
    with torch.device("meta"):
        assert shapes(FluxAE()) == {name: tuple(shape) for name, shape in full.items()}
        assert shapes(FluxAE(width=32)) == {name: tuple(shape) for name, shape in small.items()}
    assert len(full) == 244


def test_encoder(codec: FluxAE, golden: dict[str, Tensor], rel) -> None:
    mean, logvar = codec.moments(golden["in.image"])
    assert rel(torch.cat([mean, logvar], dim=1), golden["out.moments"]) < TOL
    assert rel(codec.encode(golden["in.image"]), golden["out.latent"]) < TOL


def test_decoder(codec: FluxAE, golden: dict[str, Tensor], rel) -> None:
    for latent, expected in (("out.latent", "out.decoded"), ("in.latent", "out.decoded_from_in_latent")):
        assert golden[expected].abs().max() > 1  # else clipping would not show
        raw = codec.decoder(golden[latent] / 0.3611 + 0.1159)
        assert rel(raw, golden[expected]) < TOL
        assert rel(codec.decode(golden[latent]), golden[expected].clamp(-1, 1)) < TOL


def test_a_generator_samples_the_posterior(codec: FluxAE, golden: dict[str, Tensor]) -> None:
    image = golden["in.image"][:1]
    mean, logvar = codec.moments(image)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    expected = 0.3611 * (mean + (0.5 * logvar).exp() * noise - 0.1159)
    torch.testing.assert_close(codec.encode(image, torch.Generator().manual_seed(3)), expected)


def test_images_of_other_sizes_and_widths_are_refused(codec: FluxAE) -> None:
    with pytest.raises(DataError, match="divisible by 8"):
        codec.encode(torch.zeros(1, 3, 20, 32))
    with pytest.raises(ConfigError, match="multiple of 32"):
        FluxAE(width=48)
    with pytest.raises(ConfigError, match="no codec of kind 'none'"):
        build_codec(CodecConfig(kind="none"))


def test_file_is_strict_both_ways_and_lists_everything(codec: FluxAE, tmp_path: Path) -> None:
    save_codec(codec, tmp_path)
    assert set(load_file(tmp_path / "ae.safetensors")) == set(shapes(codec))
    loaded = load_codec(tmp_path, SMALLEST)
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in codec.state_dict().items())
    with pytest.raises(CheckpointError) as error:
        load_codec(tmp_path, CodecConfig(kind="flux", width=64))
    assert "a FluxAE with z=16, width=64" in str(error.value)
    assert "encoder.conv_in.weight: (32, 3, 3, 3) in the file, (64, 3, 3, 3)" in str(error.value)
