"""Training of the small codec."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gvcot.data import scenes
from gvcot.data.show import painted
from gvcot.model.checkpoint import load_codec
from gvcot.model.codec import TinyAE
from gvcot.model.config import CodecConfig
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker
from sft.codec import batches, codec_loss, fidelity, scene_images, set_statistics, train_codec
from sft.config import CodecTrainConfig


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return scene_images(0, "train", range(4), 64)


def test_source_target_and_reasoning_image_are_interleaved(images: np.ndarray) -> None:
    sample = scenes.generate(0, 1)
    assert images.shape == (12, 64, 64, 3)
    assert (images[3] == sample.source_HW3).all()
    assert (images[4] == sample.target_HW3).all()
    assert (images[5] == painted(sample)).all()


def test_batches_are_a_function_of_seed_and_step(images: np.ndarray) -> None:
    straight, resumed = list(islice(batches(images, 4, 0, 0), 4)), list(islice(batches(images, 4, 0, 2), 2))
    assert torch.equal(straight[2], resumed[0])
    assert torch.equal(straight[3], resumed[1])
    assert not torch.equal(straight[0], straight[1])


def test_the_loss_is_reconstruction_plus_divergence_to_a_unit_normal() -> None:
    codec = TinyAE(width=8)
    with torch.no_grad():
        last = codec.encoder[-1]
        last.weight.zero_()
        last.bias.copy_(
            torch.cat([torch.full((16,), 2.0), torch.full((16,), 0.5)])
        )  # mean 2, log-variance 0.5
    images = torch.zeros(2, 3, 16, 16)
    loss, mse = codec_loss(codec, images, torch.zeros(2, 16, 2, 2), kl_weight=0.1)
    kl = 0.5 * (4 + np.exp(0.5) - 1 - 0.5)
    assert loss.item() == pytest.approx(mse.item() + 0.1 * kl, rel=1e-5)
    torch.testing.assert_close(mse, codec.decoder(torch.full((2, 16, 2, 2), 2.0)).square().mean().detach())


def test_statistics_and_fidelity(images: np.ndarray) -> None:
    codec = TinyAE(width=8)
    set_statistics(codec, images)
    latent = codec.encode(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).detach()
    torch.testing.assert_close(latent.transpose(0, 1).flatten(1).std(1), torch.ones(16), atol=1e-3, rtol=0)
    psnr = fidelity(codec, images)
    assert psnr["psnr"] == pytest.approx(
        (psnr["psnr_source"] + psnr["psnr_target"] + psnr["psnr_x_cot"]) / 3, rel=1e-5
    )


@pytest.mark.slow  # 10 s: each run ends with an evaluation on 512 scenes
def test_a_stopped_codec_run_goes_on_bit_for_bit_and_learns(tmp_path: Path) -> None:
    config = CodecTrainConfig(
        name="codec", steps=30, width=8, num_samples=8, batch_size=8, threads=1, log_every=1, save_every=10
    )

    def run(path: Path) -> dict[str, float]:
        opened = RunDir.open(path, config)
        with Tracker(path, resume_step=opened.resume_step if opened.resumed else None) as tracker:
            return train_codec(config, opened, tracker)

    straight = run(tmp_path / "run")
    weights = load_file(tmp_path / "run" / "final" / "ae.safetensors")
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step_20")
    assert run(tmp_path / "run") == straight
    again = load_file(tmp_path / "run" / "final" / "ae.safetensors")
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert straight["psnr"] > 10
    load_codec(tmp_path / "run" / "final", CodecConfig(kind="tiny", width=8))
