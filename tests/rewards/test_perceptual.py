"""PSNR, SSIM and LPIPS outside the change mask."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from gvcot.errors import ConfigError
from rewards.fidelity import Preservation
from rewards.perceptual import Lpips, Psnr, Ssim, ssim_map


def edited(batch, images):
    return replace(batch, images={**batch.images, "x_edit": images})


def noise(seed, shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("db", "score"), [(15, 0.25), (30, 0.5), (60, 1.0), (80, 1.0)])
def test_psnr_is_linear_in_decibels(make_batch, square, db, score):
    batch = make_batch([square(4, 4, 9, 9)])
    got = Psnr().score(edited(batch, batch.source_rt_B3HW + 2 * 10 ** (-db / 20)))
    assert got.raw_B.item() == pytest.approx(score, abs=1e-4)
    assert got.parts["db"].item() == pytest.approx(min(db, 60), abs=1e-2)
    half = Psnr(ceiling_db=30).score(edited(batch, batch.source_rt_B3HW + 2 * 10 ** (-db / 20)))
    assert half.raw_B.item() == pytest.approx(min(1, db / 30), abs=1e-4)


def test_psnr_by_hand_for_a_lost_bystander(make_batch, square):
    """16 of 231 outside pixels are off by half the range: -20 log10(0.5 sqrt(16 / 231)) = 17.616 dB."""
    batch = make_batch([square(4, 4, 9, 9)])
    drawn = batch.source_rt_B3HW.clone()
    drawn[..., 11:15, 11:15] += 1.0
    got = Psnr().score(edited(batch, drawn))
    assert got.parts["db"].item() == pytest.approx(17.616, abs=1e-3)
    assert got.parts["db"].item() == pytest.approx(
        Preservation().score(edited(batch, drawn)).parts["psnr_db"].item()
    )


@given(
    seed=st.integers(0, 10_000), height=st.integers(11, 24), width=st.integers(11, 24), mixed=st.floats(0, 1)
)
def test_ssim_is_that_of_scikit_image(seed, height, width, mixed):
    one = noise(seed, (2, 3, height, width))
    other = torch.lerp(one, noise(seed + 1, one.shape), mixed)
    got = ssim_map(one, other)
    for row in range(2):
        a, b = (x[row].permute(1, 2, 0).double().numpy() / 2 + 0.5 for x in (one, other))
        _, expected = structural_similarity(
            a,
            b,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            use_sample_covariance=False,
            full=True,
        )
        assert np.allclose(got[row].numpy(), expected.mean(axis=-1), atol=1e-4)


def test_ssim_is_the_mean_over_outside_pixels(make_batch, square):
    mask = square(4, 4, 9, 9)
    batch = make_batch([mask], source=noise(0, (1, 3, 16, 16)))
    drawn = torch.where(torch.from_numpy(mask), batch.source_rt_B3HW, noise(1, (1, 3, 16, 16)))
    expected = ssim_map(drawn, batch.source_rt_B3HW)[0][torch.from_numpy(~mask)].mean().item()
    assert Ssim().score(edited(batch, drawn)).raw_B.item() == pytest.approx(expected, abs=1e-6)
    assert expected < 0.3


def test_ssim_forgives_brightness_and_punishes_blur(make_batch, square):
    batch = make_batch([square(4, 4, 9, 9)] * 3, source=noise(0, (1, 3, 16, 16)).repeat(3, 1, 1, 1))
    source = batch.source_rt_B3HW[0]
    brighter = source + 0.1
    blurred = torch.nn.functional.avg_pool2d(source, 3, stride=1, padding=1)
    same, shifted, smooth = (
        Ssim().score(edited(batch, torch.stack([source, brighter, blurred]))).raw_B.tolist()
    )
    assert same == pytest.approx(1)
    assert shifted > 0.9
    assert smooth < 0.6


@pytest.mark.parametrize("reward", [Psnr(), Ssim()])
def test_inside_the_change_mask_everything_may_happen(make_batch, square, reward):
    mask = square(4, 4, 9, 9)
    batch = make_batch([mask], source=noise(0, (1, 3, 16, 16)))
    wild = torch.where(torch.from_numpy(mask), noise(1, (1, 3, 16, 16)), batch.source_rt_B3HW)
    assert reward.score(edited(batch, wild)).raw_B.item() == pytest.approx(1)
    harmed = torch.where(torch.from_numpy(mask), batch.source_rt_B3HW, noise(1, (1, 3, 16, 16)))
    one, other = (
        reward.score(edited(batch, x)).raw_B.item()
        for x in (harmed, torch.where(torch.from_numpy(mask), wild, harmed))
    )
    assert one == pytest.approx(other, abs=1e-6)
    assert one < 0.5


@pytest.mark.parametrize("reward", [Psnr(), Ssim()])
def test_missing_where_the_outside_is_unknown_or_nowhere(make_batch, square, reward):
    full = square(0, 0, 16, 16)
    batch = make_batch([full] * 3, change_masks=[full, None, square(4, 4, 9, 9)])
    got = reward.score(batch)
    assert got.valid_B.tolist() == [False, False, True]
    assert got.raw_B.isfinite().all()


@pytest.mark.parametrize("reward", [Psnr(), Ssim()])
def test_a_chains_score_does_not_depend_on_its_neighbours(make_batch, square, reward):
    masks = [square(4, 4, 9, 9), square(1, 1, 14, 5), square(8, 8, 16, 16)]
    drawn = noise(3, (3, 3, 16, 16))
    together = reward.score(edited(make_batch(masks), drawn)).raw_B
    alone = [
        reward.score(edited(make_batch([m]), drawn[i : i + 1])).raw_B.item() for i, m in enumerate(masks)
    ]
    assert together.tolist() == pytest.approx(alone, abs=1e-6)


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match=r"ceiling_db is 80, expected a number in \(0, 60\]"):
        Psnr(ceiling_db=80)


@pytest.mark.skipif(importlib.util.find_spec("lpips") is not None, reason="lpips is installed")
def test_lpips_says_which_package_is_missing():
    with pytest.raises(ConfigError, match="run `pip install lpips`"):
        Lpips()


@pytest.mark.skipif(importlib.util.find_spec("lpips") is None, reason="lpips is not installed")
def test_lpips_says_which_weights_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="alexnet-owt-7be5be79.pth there, or use the reward ssim"):
        Lpips()


@pytest.mark.skipif(importlib.util.find_spec("lpips") is None, reason="lpips is not installed")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lpips_compares_features_outside_the_change_mask(make_batch, square, tmp_path, monkeypatch):
    """On an AlexNet with random weights; the distance is worked out by hand from its features."""
    from gvcot.torchvision_cpu import declare_missing_operators

    declare_missing_operators()
    from torchvision.models import alexnet

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = alexnet(weights=None).eval()
    torch.save(network.state_dict(), folder / "alexnet-owt-7be5be79.pth")

    mask = np.zeros((64, 64), dtype=bool)
    mask[20:40, 20:40] = True
    source, wild = noise(0, (1, 3, 64, 64)), noise(1, (1, 3, 64, 64))
    inside = torch.where(torch.from_numpy(mask), wild, source)
    batch = make_batch([mask] * 3, source=source.repeat(3, 1, 1, 1))
    reward = Lpips()
    copy, free, harmed = reward.score(edited(batch, torch.cat([source, inside, wild]))).raw_B.tolist()
    assert (copy, free) == (1, 1)

    from lpips import LPIPS

    weights = [layer.model[1].weight.detach() for layer in LPIPS(net="alex", verbose=False).lins]
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, y = ((image - shift) / scale for image in (torch.where(torch.from_numpy(mask), source, wild), source))
    distance = 0.0
    with torch.no_grad():
        for i, layer in enumerate(network.features):
            x, y = layer(x.clone()), layer(y.clone())
            if i in (1, 4, 7, 9, 11):
                unit_x, unit_y = (z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in (x, y))
                distance += ((unit_x - unit_y).square() * weights.pop(0)).sum(dim=1).mean().item()
    assert harmed == pytest.approx(1 - distance, abs=1e-4)
