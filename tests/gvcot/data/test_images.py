"""Between files, uint8 images and float tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gvcot.data.images import read_image, to_tensor, to_uint8
from gvcot.errors import DataError


def test_every_level_survives_the_round_trip() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor([levels])
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor.min() == -1.0
    assert tensor.max() == 1.0
    assert (to_uint8(tensor)[0] == levels).all()


def test_values_outside_the_range_are_clipped() -> None:
    assert to_uint8(torch.tensor([-3.0, 3.0, 0.0]).view(1, 3, 1, 1)).tolist() == [[[[0, 255, 128]]]]


def test_images_of_one_batch_share_a_size() -> None:
    with pytest.raises(DataError, match="share one size"):
        to_tensor([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])


@pytest.mark.parametrize("image", [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_only_uint8_rgb_is_taken(image: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected uint8 RGB"):
        to_tensor([image])


def test_files_are_read_as_rgb(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", multiple=16) == pixels).all()
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    grey = read_image(tmp_path / "grey.png", multiple=16)
    assert grey.shape == (32, 48, 3)
    assert (grey == pixels[..., :1]).all()


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("not a picture")
    for name in ("bad.png", "missing.png"):
        with pytest.raises(DataError, match=f"cannot read the image .*{name}"):
            read_image(tmp_path / name, multiple=16)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "cut.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut\.png"):
        read_image(path, multiple=16)


def test_a_wrong_size_is_answered_with_the_nearest_right_one(tmp_path: Path) -> None:
    Image.new("RGB", (70, 5)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"70x5 px.*divisible by 16.*64x16"):
        read_image(tmp_path / "a.png", multiple=16)


def test_a_file_is_brought_to_a_size_that_fits(tmp_path: Path) -> None:
    halves = np.zeros((40, 80, 3), dtype=np.uint8)
    halves[:, 40:] = 255
    Image.fromarray(halves).save(tmp_path / "a.png")
    small = read_image(
        tmp_path / "a.png", multiple=16, fit=lambda height, width: (height // 2 - 4, width // 2 - 8)
    )
    assert small.shape == (16, 32, 3)
    assert small[:, :14].max() < 10
    assert small[:, 18:].min() > 245
    same = read_image(tmp_path / "a.png", multiple=8, fit=lambda height, width: (height, width))
    assert (same == halves).all()
