"""Flow formulas on numbers one can check by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gvcot.model import flow


def test_schedule_by_hand():
    torch.testing.assert_close(flow.sigma_schedule(2, 3.0), torch.tensor([1.0, 0.75, 0.0]))
    torch.testing.assert_close(flow.sigma_schedule(4, 1.0), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


@given(st.integers(1, 60), st.floats(0.2, 8.0))
def test_schedule_falls_from_one_to_zero(num_steps, shift):
    sigmas = flow.sigma_schedule(num_steps, shift)
    assert sigmas.shape == (num_steps + 1,)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_one_exact_step_recovers_the_image():
    x0, eps, t = torch.randn(2, 4, 64), torch.randn(2, 4, 64), torch.tensor([0.9, 0.3])
    x_t = flow.interpolate(x0, eps, t)
    torch.testing.assert_close(x_t - flow.velocity_target(x0, eps) * t[:, None, None], x0)


def test_train_times_are_reproducible_and_shift_towards_noise():
    def draw(shift):
        return flow.sample_train_t(4000, shift, torch.Generator().manual_seed(0))

    assert torch.equal(draw(1.0), draw(1.0))
    assert draw(1.0).mean().item() == pytest.approx(0.5, abs=0.02)
    assert (draw(3.0) > draw(1.0)).all()


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_patchify_round_trip(rows, cols, patch):
    latent_BCHW = torch.randn(2, 5, rows * patch, cols * patch)
    tokens_BND = flow.patchify(latent_BCHW, patch)
    assert tokens_BND.shape == (2, rows * cols, patch * patch * 5)
    assert torch.equal(flow.unpatchify(tokens_BND, (rows, cols), patch), latent_BCHW)


def test_patch_order():
    latent = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(1, 2, 1, 1)
    latent[:, 1] += 100
    assert flow.patchify(latent, 2)[0, 1].tolist() == [2, 102, 3, 103, 6, 106, 7, 107]


def test_guidance_by_hand():
    full, no_text, no_image = (torch.tensor([[[x, 0.0]]]) for x in (2.0, 1.0, 0.5))
    plain = flow.cfg_combine(full, no_text, no_image, text_scale=3.0, image_scale=2.0, renorm="none")
    assert plain[0, 0, 0].item() == 0.5 + 2 * (1 + 3 * (2 - 1) - 0.5)  # 7.5
    kept = flow.cfg_combine(full, no_text, no_image, text_scale=3.0, image_scale=2.0, renorm="global")
    assert kept[0, 0, 0].item() == pytest.approx(2.0)
    text = flow.cfg_combine(full, no_text, no_image, text_scale=3.0, image_scale=2.0, renorm="text_channel")
    assert text[0, 0, 0].item() == pytest.approx(0.5 + 2 * (2.0 - 0.5))
    clamped = flow.cfg_combine(full, no_text, None, text_scale=3.0, renorm="global", renorm_min=0.75)
    assert clamped[0, 0, 0].item() == pytest.approx(3.0)


@pytest.mark.parametrize("renorm", ["none", "global", "channel", "text_channel"])
def test_guidance_of_a_batch_is_per_sample(renorm):
    full, no_text, no_image = torch.randn(3, 4, 6, 8).unbind()
    options = {"text_scale": 4.0, "image_scale": 2.0, "renorm": renorm}
    together = flow.cfg_combine(full, no_text, no_image, **options)
    alone = [
        flow.cfg_combine(full[i : i + 1], no_text[i : i + 1], no_image[i : i + 1], **options)
        for i in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
