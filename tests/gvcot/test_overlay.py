"""Painting a region and reading it back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gvcot import overlay
from gvcot.errors import DataError


def random_sources(seed: int, batch: int = 2, size: int = 24) -> torch.Tensor:
    """Random pixels that stay away from magenta (green at least a quarter)."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.rand(batch, 3, size, size, generator=generator) * 2 - 1
    source[:, 1].clamp_(min=-0.5)
    return source


def rectangle(size: int, top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    return mask


def test_fill_is_the_measured_blend():
    """0.4 S + 0.6 (255, 0, 255): a grey of 100 becomes (193, 40, 193)."""
    source = torch.full((1, 3, 4, 4), 100 / 127.5 - 1)
    painted = overlay.paint(source, torch.ones(1, 4, 4, dtype=torch.bool), ["mask"])
    levels = (painted + 1) * 127.5
    assert levels[0, :, 0, 0].tolist() == pytest.approx([193, 40, 193], abs=1e-3)


def test_unpainted_pixels_are_untouched():
    source = random_sources(0, batch=1)
    mask = rectangle(24, 3, 4, 10, 12)
    painted = overlay.paint(source, mask, ["mask"])
    outside = ~mask[:, None].expand_as(source)
    assert torch.equal(painted[outside], source[outside])


def test_painting_does_not_change_its_inputs():
    source, mask = random_sources(1, batch=1), rectangle(24, 3, 4, 10, 12)
    before = source.clone()
    overlay.paint(source, mask, ["box"])
    assert torch.equal(source, before)


@given(
    seed=st.integers(0, 10_000),
    top=st.integers(0, 18),
    left=st.integers(0, 18),
    height=st.integers(3, 24),
    width=st.integers(3, 24),
    style=st.sampled_from(["mask", "box"]),
)
def test_what_is_painted_is_read_back(seed, top, left, height, width, style):
    source = random_sources(seed, batch=1)
    mask = rectangle(24, top, left, top + height, left + width)
    assert torch.equal(overlay.read(overlay.paint(source, mask, [style]), source), mask)


@given(seed=st.integers(0, 10_000))
def test_any_mask_is_read_back_without_cleaning(seed):
    source = random_sources(seed)
    mask = torch.from_numpy(np.random.default_rng(seed).random((2, 24, 24)) < 0.5)
    painted = overlay.paint(source, mask, ["mask", "mask"])
    assert torch.equal(overlay.read(painted, source, min_area=0), mask)


def test_reading_survives_the_noise_of_a_small_model():
    """Error of 20 dB PSNR, far worse than a codec's: the mask is still almost exact."""
    source = random_sources(5, size=64)
    mask = rectangle(64, 20, 20, 40, 44).expand(2, -1, -1)
    painted = overlay.paint(source, mask, ["mask", "mask"])
    noisy = painted + 0.2 * torch.randn(painted.shape, generator=torch.Generator().manual_seed(0))
    read = overlay.read(noisy, source)
    assert (read & mask).sum() / (read | mask).sum() > 0.9


def test_coverage_tells_none_fill_and_border_apart():
    source = random_sources(2, batch=1, size=64)
    c = overlay.coverage(overlay.paint(source, rectangle(64, 10, 10, 20, 20), ["box"]), source)[0]
    assert c[5, 5] == 0
    assert c[15, 15] == pytest.approx(1.0, abs=1e-4)
    assert c[10, 15] == pytest.approx(1 / 0.6, abs=1e-4)
    assert c[19, 19] == pytest.approx(1 / 0.6, abs=1e-4)


def test_coverage_is_clipped_on_both_sides():
    source = torch.zeros(1, 3, 2, 2)
    away = torch.tensor([-1.0, 1.0, -1.0])[None, :, None, None].expand_as(source)
    assert overlay.coverage(away, source).max() == 0
    assert overlay.coverage(-3 * away, source).max() == pytest.approx(overlay.MAX_COVERAGE)


def test_border_is_as_wide_as_the_papers():
    """6 px of 426 px."""
    source = torch.zeros(1, 3, 426, 426)
    painted = overlay.paint(source, rectangle(426, 100, 100, 200, 200), ["box"])
    opaque = (overlay.coverage(painted, source) > 1.5)[0]
    assert opaque[150, 100:106].all()
    assert not opaque[150, 106]


def test_box_fills_each_parts_bounding_box():
    mask = rectangle(32, 2, 2, 8, 4) | rectangle(32, 6, 2, 8, 9) | rectangle(32, 20, 20, 25, 25)
    source = random_sources(3, batch=1, size=32)
    read = overlay.read(overlay.paint(source, mask, ["box"]), source)
    assert torch.equal(read, rectangle(32, 2, 2, 8, 9) | rectangle(32, 20, 20, 25, 25))


def test_styles_are_per_image():
    mask = (rectangle(24, 2, 2, 12, 4) | rectangle(24, 10, 2, 12, 12)).expand(2, -1, -1)
    source = random_sources(4)
    read = overlay.read(overlay.paint(source, mask, ["mask", "box"]), source)
    assert torch.equal(read[0], mask[0])
    assert torch.equal(read[1], rectangle(24, 2, 2, 12, 12)[0])


def test_an_empty_mask_paints_nothing():
    source = random_sources(6, batch=1)
    empty = torch.zeros(1, 24, 24, dtype=torch.bool)
    for style in ("mask", "box"):
        painted = overlay.paint(source, empty, [style])
        assert torch.equal(painted, source)
        assert not overlay.read(painted, source).any()


def test_magenta_sources_read_as_unpainted_and_stay_finite():
    source = torch.tensor(overlay.MAGENTA)[None, :, None, None].expand(1, 3, 16, 16).clone()
    source[..., :8] = 0.0
    drawn = overlay.paint(source, torch.ones(1, 16, 16, dtype=torch.bool), ["mask"]) - 0.02
    c = overlay.coverage(drawn, source)
    assert c.isfinite().all()
    assert (c[..., 8:] == 0).all()
    assert overlay.read(drawn, source)[..., :8].all()


def test_specks_go_and_small_holes_close_but_large_ones_stay():
    mask = rectangle(32, 4, 4, 24, 24)
    mask[:, 6:8, 6:8] = False  # a hole of 4 px
    mask[:, 12:18, 12:18] = False  # a hole of 36 px: something stands in front
    mask[:, 28, 28:33] = True  # a speck of 4 px
    cleaned = overlay.clean(mask)
    expected = rectangle(32, 4, 4, 24, 24) & ~rectangle(32, 12, 12, 18, 18)
    assert torch.equal(cleaned, expected)


def test_cleaning_never_joins_images_of_a_batch():
    """A 3 px speck at the same place in each of 4 images is 12 px only if images were neighbours."""
    mask = torch.zeros(4, 16, 16, dtype=torch.bool)
    mask[:, 5, 5:8] = True
    assert not overlay.clean(mask).any()


@given(seed=st.integers(0, 10_000))
def test_rows_are_read_independently_and_cleaning_is_stable(seed):
    mask = torch.from_numpy(np.random.default_rng(seed).random((3, 20, 20)) < 0.4)
    cleaned = overlay.clean(mask)
    alone = torch.cat([overlay.clean(mask[i : i + 1]) for i in range(3)])
    assert torch.equal(cleaned, alone)
    assert torch.equal(overlay.clean(cleaned), cleaned)


def test_coverage_has_the_right_gradient():
    source = random_sources(7, batch=1, size=4).double()
    drawn = overlay.paint(source, torch.ones(1, 4, 4, dtype=torch.bool), ["mask"]).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: overlay.coverage(r, source), (drawn,))


def test_wrong_shapes_are_explained():
    source, mask = random_sources(8), torch.zeros(2, 24, 24, dtype=torch.bool)
    with pytest.raises(DataError, match=r"expected bool \(2, 24, 24\)"):
        overlay.paint(source, mask[:, :20], ["mask", "mask"])
    with pytest.raises(DataError, match="expected bool"):
        overlay.paint(source, mask.float(), ["mask", "mask"])
    with pytest.raises(DataError, match="for each image"):
        overlay.paint(source, mask, ["mask"])
    with pytest.raises(DataError, match="for each image"):
        overlay.paint(source, mask, ["mask", "outline"])
    with pytest.raises(DataError, match="must have the same size"):
        overlay.read(source[:, :, :12], source)
    with pytest.raises(DataError, match="move channels first"):
        overlay.coverage(source.permute(0, 2, 3, 1), source)
    with pytest.raises(DataError, match="convert uint8"):
        overlay.coverage(source.to(torch.uint8), source.to(torch.uint8))


def test_residual_is_what_paint_cannot_explain():
    """Grey 0 turned green (-1, 1, -1) is all residual, of rms 1; paint of any strength leaves none."""
    source = torch.zeros(1, 3, 4, 4)
    green = -torch.tensor(overlay.MAGENTA)[None, :, None, None].expand_as(source)
    assert overlay.residual(green, source, overlay.coverage(green, source)).tolist() == [[[1.0] * 4] * 4]
    faint = -0.3 * green
    assert overlay.residual(faint, source, overlay.coverage(faint, source)).max() < 1e-6
